"""Standard streams that are closed or full: what a run draws does not depend on who listens to it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from dittools.pipelines.errors import RunFailed


class Lost(RunFailed):
    """A result could not be written to stdout."""


@contextmanager
def heard() -> Iterator[None]:
    """In the block, stderr takes what cannot be written without a word, and stdout says so in one line."""
    _open_all()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Result(sys.stdout), _Side(sys.stderr)
    try:
        yield
    finally:
        # a lost one stays away: Python would try it once more as it ends, and complain
        lost = [getattr(stream, "lost", False) for stream in (sys.stdout, sys.stderr)]
        sys.stdout = sys.stdout if lost[0] else before[0]
        sys.stderr = sys.stderr if lost[1] else before[1]


def _open_all() -> None:
    """Give numbers 0 to 2 to the null device where they are closed: else the next file would get such a number, and
    with it whatever a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


class _Stream:
    """A stream as it was, but for what happens when it cannot be written."""

    def __init__(self, stream: TextIO | None):
        self.lost = stream is None
        self._stream: Any = stream or _null()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            return self._failed(error, text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._failed(error, "")

    def _failed(self, error: Exception, text: str) -> int:
        raise NotImplementedError

    def _lose(self) -> None:
        self.lost, self._stream = True, _null()


class _Side(_Stream):
    """stderr: progress and notes, which a run does without."""

    def _failed(self, error: Exception, text: str) -> int:
        self._lose()
        return len(text)


class _Result(_Stream):
    """stdout: what was asked for."""

    def write(self, text: str) -> int:
        if self.lost and text:
            raise Lost(_not_written("it is closed"))
        return super().write(text)

    def _failed(self, error: Exception, text: str) -> int:
        if isinstance(error, UnicodeEncodeError):  # no letters for it: a C locale, a name that is no UTF-8
            encoding = self._stream.encoding or "ascii"
            return self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._lose()
        if getattr(error, "errno", None) == errno.EPIPE:
            raise error
        raise Lost(_not_written(getattr(error, "strerror", None) or str(error))) from None


def _not_written(why: str) -> str:
    return f"the result could not be written to stdout ({why}): files that were named are written all the same"


def _null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")
