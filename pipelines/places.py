"""Where a command may write: what cannot be written is told before anything slow, and nothing of the user's is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dittools import files
from dittools.pipelines.errors import BadInput, first_line

Read = tuple[str, Path]
"""A file that is read in this run: its flag and path."""


def path_of(flag: str, name: str, example: str, what: str = "file") -> Path:
    """The path of a file or folder to write. Raises BadInput for a name that names none."""
    path = Path(name).expanduser()
    if not name or path.name in ("", ".", ".."):
        raise BadInput(f"{flag} {name!r} names no {what}: use a name such as {example}")
    if name == "-":
        raise BadInput(f"{flag} - would be the standard output, which takes no files: use a name such as {example}")
    if not is_text(name):
        raise BadInput(f"{flag} {shown(name)} is no text in this system's encoding: use a name such as {example}")
    return path


def is_text(text: str) -> bool:
    """Whether a string from the command line is text: no bytes that could not be decoded, and no NUL."""
    return "\0" not in text and not any("\ud800" <= letter <= "\udfff" for letter in text)


def shown(name: str, most: int = 200) -> str:
    """A name for an error: its start and its end where it is long, bytes that are no text as such."""
    name = name.encode("utf-8", "backslashreplace").decode()
    if len(name) <= most:
        return name
    return f"{name[:20]}...{name[20 - most :]} ({len(name)} characters)"


def writable(path: Path, flag: str, name: str | None = None) -> None:
    """Try for real whether a file or folder of this name can be made: permissions, full disks and quotas answer alike.

    Args:
        name: as it was asked for, where that is another.

    Raises:
        BadInput: one line, when it cannot.
    """
    name = shown(name or str(path))
    with told(flag, name):
        target = files.target_of(path)
        if target.is_symlink():
            raise BadInput(f"{flag} {name} is a link that leads nowhere: use another name")
        if not target.parent.exists():
            raise BadInput(f"{flag} {name}: there is no folder {shown(str(target.parent))}: make it first")
        if target.exists() and not (target.is_file() or target.is_dir()):
            raise BadInput(f"{flag} {name} is a device or a pipe: use the name of a file")
        probe = files.part_of(target)
        try:
            probe.write_bytes(b"\0")
        except OSError as error:
            why = error.strerror or first_line(error)
            parent = shown(str(target.parent))
            raise BadInput(f"{flag} {name}: {parent} cannot be written ({why}): choose another folder") from None
        finally:
            files.remove(probe)


@contextlib.contextmanager
def told(flag: str, name: str) -> Iterator[None]:
    """Turns what the system says of a name into BadInput."""
    try:
        yield
    except OSError as error:
        why = error.strerror or first_line(error)
        raise BadInput(f"{flag} {name} cannot be written ({why}): use another name") from None


def new_folder(flag: str, name: str, example: str) -> Path:
    """The path of a folder to write whole: one that is not there, or empty. Raises BadInput for any other."""
    path = path_of(flag, name, example, "folder")
    with told(flag, shown(name)):
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise BadInput(f"{flag} {shown(name)} is there and not empty: name a new folder")
        writable(path, flag)
    return path


def apart(paths: Sequence[Path], reads: Sequence[Read], flag: str) -> None:
    """Raises BadInput where a file that is read would be replaced: by its name, another spelling of it, or a link."""
    for path in paths:
        for source, other in reads:
            if _same(path, other):
                raise BadInput(
                    f"{flag} would replace {shown(str(path))}, which is the file of {source}: use another name"
                )


def keep(path: Path, flag: str, ours: Callable[[], bool], what: str, overwrite: bool) -> None:
    """Raises BadInput where a file is there that dittools did not write.

    Args:
        ours: whether it did.
        what: it would have to be, for the error: "the record of out.mp4".
    """
    with told(flag, shown(str(path))):
        if overwrite or not path.exists() or ours():
            return
    raise BadInput(
        f"{flag} would replace {shown(str(path))}, which is not {what}: use another name, or --overwrite to replace it"
    )


def _same(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)
    return os.path.realpath(path) == os.path.realpath(other)
