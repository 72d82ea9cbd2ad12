"""Files and folders that appear whole or not at all, also when the process is killed in between."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MARK = ".part"


def part_of(path: Path) -> Path:
    """The unfinished neighbour of a path: in its folder, so that renaming is one step, and of its suffix."""
    return path.parent / f".{path.stem}.{os.getpid()}{_MARK}{path.suffix}"


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to; it becomes `path` when the block ends well and vanishes when it does not.

    A folder replaces only an empty folder. Raises OSError for what the disk says no to.
    """
    part = part_of(path)
    try:
        yield part
        if part.is_dir() and path.is_dir():
            path.rmdir()
        os.replace(part, path)
    finally:
        remove(part)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole. Characters that UTF-8 has no form for become question marks."""
    with whole(path) as part:
        part.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON whole; infinities and NaN must have been written as text or null before."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there and may be removed."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder. Only for a folder nobody else writes to."""
    for path in folder.glob(f".*{_MARK}*"):
        remove(path)
