"""The package as a wheel lays it out, for programs that read sources without importing them; a hook of MkDocs.

In a checkout the rooms (`kernels/`, `cli/` and so on) lie beside `dittools/`; mkdocstrings and mypy look inside it.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import dittools

ROOT = Path(__file__).parent.parent


def linked(into: Path) -> Path:
    """Make ``into/dittools`` of links to the checkout, with the rooms inside; gives that folder."""
    package = into / "dittools"
    package.mkdir()
    for path in (ROOT / "dittools").iterdir():
        (package / path.name).symlink_to(path)
    for room in dittools._ROOMS:
        (package / room).symlink_to(ROOT / room)
    return package


def on_config(config: Any) -> Any:
    """Called by MkDocs, before its plugins see their options: mkdocstrings reads the linked package."""
    folder = tempfile.mkdtemp(prefix="dittools_site_")
    linked(Path(folder))
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [folder]
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page: what stands at the root of the checkout, pages and scripts, comes from there."""
    source = ROOT / page.file.src_uri.upper().replace(".MD", ".md")
    if markdown.strip() == f"See {source.name}.":
        text = source.read_text(encoding="utf-8")
        return text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")

    def script(match: re.Match) -> str:
        return f"```python\n{(ROOT / 'examples' / match[1]).read_text(encoding='utf-8')}```"

    return re.sub(r"<!-- script: (\S+) -->", script, markdown)


on_config.mkdocs_priority = 100  # type: ignore[attr-defined]
