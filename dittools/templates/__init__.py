"""Pages as jinja2 templates: one HTML file that needs no other, and Markdown.

HTML is escaped by default. A page's own policy forbids every script but `page.js`, and every address but data URIs.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


def render(name: str, **values: Any) -> str:
    """A page from a template of this folder. A value that is no `Markup` is escaped in HTML."""
    return _environment().get_template(name).render(values)


def printable(value: Any) -> Any:
    """A value for a page, without characters that print nothing or turn the line around."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in value)


@cache
def _environment() -> Environment:
    folder = Path(__file__).parent
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(("html.jinja",)),
        undefined=StrictUndefined,
        finalize=printable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = (Markup((folder / file).read_text(encoding="utf-8")) for file in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    made.globals |= {"style": style, "script": script, "script_digest": digest}
    return made
