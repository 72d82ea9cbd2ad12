"""The one place a command writes to: data to stdout, as text or as one JSON object; the rest to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any


class Output:
    """A command's output. `as_json` decides what `data` prints; `notes` holds what `note` said."""

    def __init__(self, as_json: bool = False):
        self.as_json = as_json
        self.notes: list[str] = []
        self._say: Callable[[str], None] = _to_stderr

    def data(self, value: dict, human: Callable[[], str]) -> None:
        """The command's result: `value` as JSON, or what `human` makes of it."""
        text = to_json(value) if self.as_json else human()
        if self.as_json and not _takes(sys.stdout, text):
            text = to_json(value, ascii_alone=True)
        print(text, file=sys.stdout, flush=True)

    def note(self, text: str) -> None:
        """Something worth knowing that is no result."""
        self.notes.append(one_line(text))
        self._say(f"note: {self.notes[-1]}")

    def line(self, text: str) -> None:
        """A line of the summary at the end of a run."""
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
    """Left-aligned columns, two spaces apart; the last one runs free."""
    cells = [list(columns), *[["-" if cell is None else str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join(lines)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
