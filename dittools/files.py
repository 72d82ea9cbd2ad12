"""Files and folders that appear whole or not at all, also when the process is killed in between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_MARK = ".part"
_LONGEST_NAME = 255  # bytes, on every file system in use


def part_of(path: Path) -> Path:
    """The unfinished neighbour of a path: in its folder, so that renaming is one step, and of its suffix."""
    tail = f".{os.getpid()}{_MARK}{path.suffix}"
    stem = os.fsencode(path.stem)[: _LONGEST_NAME - 1 - len(os.fsencode(tail))]
    return path.parent / f".{stem.decode(errors='ignore')}{tail}"


def target_of(path: Path) -> Path:
    """The file that a path stands for: where its links lead, so that a link stays one."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a path to write to; it becomes `path` when the block ends well and vanishes when it does not.

    A link stays, and what it leads to is replaced. A folder replaces only an empty folder. Raises OSError for what the
    disk says no to.
    """
    with together(path) as (part,):
        yield part


@contextlib.contextmanager
def together(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """As `whole` for several files that are one step: all of them appear, or all stay as they were."""
    targets = [target_of(path) for path in paths]
    parts = tuple(part_of(target) for target in targets)
    try:
        yield parts
        _exchange(parts, targets)
    finally:
        for part in parts:
            remove(part)


def _exchange(parts: tuple[Path, ...], targets: list[Path]) -> None:
    """Rename all, or put back what was there."""
    last, undo = len(targets) - 1, contextlib.ExitStack()
    kept = []
    with undo:
        for number, (part, target) in enumerate(zip(parts, targets, strict=True)):
            if part.is_dir() and target.is_dir():
                target.rmdir()
                undo.callback(target.mkdir)
                undo.callback(remove, target)
            elif number < last:  # nothing comes after the last one that could fail
                kept.append(_kept(target, undo))
            os.replace(part, target)
        undo.pop_all()
    for old in kept:
        remove(old)


def _kept(target: Path, undo: contextlib.ExitStack) -> Path:
    """A second name for a file, under which it comes back when the rest fails."""
    old = part_of(target.with_name(f"{target.name}.old"))
    remove(old)
    if not target.exists():
        undo.callback(remove, target)
        return old
    try:
        os.link(target, old)
    except OSError:  # a file system without such links
        shutil.copy2(target, old)
    undo.callback(_back, old, target)
    return old


def _back(old: Path, target: Path) -> None:
    os.replace(old, target)
    remove(old)  # renaming does nothing where the two are one file, which was not replaced yet


def write_text(path: Path, text: str) -> None:
    """Write a text file whole. Characters that UTF-8 has no form for become question marks."""
    with whole(path) as part:
        part.write_bytes(text.encode("utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON whole; infinities and NaN must have been written as text or null before."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 where it begins with that encoding's mark; no mark is part of it.

    Raises:
        OSError: when the file cannot be read.
        UnicodeDecodeError: a ValueError, when it is no text.
    """
    data = path.read_bytes()
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if utf16 else "utf-8-sig")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(text: str) -> Any:
    """The value of JSON text. Raises ValueError, also where it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there and may be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove what killed processes left unfinished in a folder. Only for a folder nobody else writes to."""
    for path in folder.glob(f".*{_MARK}*"):
        remove(path)
