"""A report as Markdown: the table and the sentences, without pictures."""

from __future__ import annotations

import re
from html import escape

from dittools.report import text
from dittools.report.results import Results
from dittools.templates import render

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|~$@])")
_LONGEST = 300


def page(results: Results) -> str:
    """The text of report.md."""
    columns = text.columns(results)
    rows = [[cell for cell, _ in text.cells(line, n, columns)] for n, line in enumerate(results.lines, 1)]
    return render("report.md.jinja", results=results, text=text, plain=plain, table=[text.heads(columns), *rows])


def plain(text: str) -> str:
    """Any text as one line that Markdown takes literally; cut where it is very long."""
    text = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + f" ... ({len(text)} characters)"
    return _SPECIAL.sub(r"\\\1", escape(text, quote=False))
