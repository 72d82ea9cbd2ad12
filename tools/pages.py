"""A page that is generated: written anew, or held against what would be written."""

from __future__ import annotations

import sys
from pathlib import Path


def write_or_check(page: Path, fresh: str, check: bool, differs: str) -> int:
    """Write a page, or with ``check`` only say where it is out of date. Gives the exit code, 1 for a page that is.

    Args:
        fresh: what the page has to hold.
        differs: what is said then, with what to run.
    """
    if not check:
        page.write_text(fresh, encoding="utf-8")
    elif fresh != page.read_text(encoding="utf-8"):
        print(differs, file=sys.stderr)
        return 1
    return 0
