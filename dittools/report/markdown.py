"""A report as Markdown: the table and the words, without pictures."""

from __future__ import annotations

import re
from html import escape

from dittools.report import words
from dittools.report.results import Results

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|~$@])")
_LONGEST = 300


def page(results: Results) -> str:
    """The text of report.md."""
    columns = words.columns(results)
    rows = [[text for text, _ in words.cells(line, n, columns)] for n, line in enumerate(results.lines, 1)]
    parts = [
        "# Speed and quality",
        plain(words.subject(results)),
        "\n".join(f"- {plain(text)}" for text in words.headline(results)),
        _table(words.heads(columns), rows),
        "## What these figures say",
        "\n".join(f"- {plain(text)}" for text in words.explained(results)),
    ]
    left_out = results.left_out()
    if left_out:
        parts += ["## Left out", "\n".join(f"- {plain(text)}" for text in left_out)]
    if results.failures:
        parts += [
            "## Failed",
            "\n".join(f"- {plain(entry['setting'])}: {plain(entry['error'])}" for entry in results.failures),
        ]
    prompts = "\n".join(f"{n}. {plain(prompt)}" for n, prompt in enumerate(results.plan.prompts, 1))
    parts += ["## Prompts", prompts, "## Made with", plain(words.ground(results))]
    parts.append(plain("Command: " + " ".join(results.manifest["command"])))
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Any text as one line that Markdown takes literally; cut where it is very long."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + f" ... ({len(text)} characters)"
    return _SPECIAL.sub(r"\\\1", escape(text, quote=False))


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [[plain(cell) for cell in head], ["---"] * len(head), *[[plain(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
