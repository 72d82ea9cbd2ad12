"""The one place a command writes to: data to stdout, as text or as one JSON object; the rest to stderr."""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any


class Output:
    """A command's output. `as_json` decides what `data` prints; `notes` holds what `note` said."""

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False):
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        self.notes: list[str] = []
        self._say: Callable[[str], None] = _to_stderr

    @classmethod
    def of(cls, flags: Any) -> Output:
        """What the flags of a verb ask for; with --verbose, libraries say what they do too."""
        if flags.verbose:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")
            for library in ("DIFFUSERS", "TRANSFORMERS", "HF_HUB"):  # which read this when they are imported
                os.environ.setdefault(f"{library}_VERBOSITY", "info")
        return cls(flags.as_json, flags.quiet, flags.verbose)

    def data(self, value: dict, human: Callable[[], str]) -> None:
        """The command's result: `value` as JSON, or what `human` makes of it."""
        text = to_json(value) if self.as_json else human()
        if self.as_json and not _takes(sys.stdout, text):
            text = to_json(value, ascii_alone=True)
        print(text, file=sys.stdout, flush=True)

    def note(self, text: str) -> None:
        """Something worth knowing that is no result."""
        self.notes.append(one_line(text))
        self.line(f"note: {self.notes[-1]}")

    def line(self, text: str) -> None:
        """A line of progress, or of the summary at the end of a run."""
        if not self.quiet:
            self._say(one_line(text))

    def through(self, say: Callable[[str], None] | None) -> None:
        """Send stderr lines through a live display while there is one; None ends that."""
        self._say = say or _to_stderr


def to_json(value: Any, ascii_alone: bool = False) -> str:
    """Strict JSON: infinities and NaN must have been written as text or null before."""
    return json.dumps(value, indent=2, ensure_ascii=ascii_alone, allow_nan=False)


def _takes(stream: Any, text: str) -> bool:
    """Whether the stream's encoding has all letters of a text."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: str) -> str:
    """Any text as one line without control characters: prompts and errors may hold both."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Left-aligned columns, two spaces apart; on a terminal the last one is wrapped to its width."""
    cells = [list(columns), *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    indent = sum(widths[:-1]) + 2 * len(widths[:-1])
    lines = []
    for row in cells:
        head = "".join(cell.ljust(width + 2) for cell, width in zip(row[:-1], widths[:-1], strict=True))
        lines += _wrapped(head + row[-1], indent)
    return "\n".join(line.rstrip() for line in lines)


_NARROWEST = 24
"""Columns that a wrapped column needs; with fewer, lines run on."""


def _wrapped(line: str, indent: int) -> list[str]:
    """A line of a table as lines that fit the terminal; as it is where there is none."""
    if not (sys.stdout.isatty() or os.environ.get("COLUMNS")):
        return [line]
    width = shutil.get_terminal_size().columns
    if len(line) <= width or width - indent < _NARROWEST:
        return [line]
    parts = textwrap.wrap(line[indent:], width - indent, break_long_words=False, break_on_hyphens=False)
    return [line[:indent] + parts[0], *(" " * indent + part for part in parts[1:])]


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
