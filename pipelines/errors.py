"""The two ways a run goes wrong that a user can act on. Their text is one line: asked, found, what to do."""

from __future__ import annotations


class BadInput(ValueError):
    """What was asked cannot be done as asked: found before any work started."""


class RunFailed(RuntimeError):
    """What was asked was fine, and the run failed: memory, disk, network, a broken download."""


class DiskFull(RunFailed):
    """There is no room left: whatever is written next fails as well."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text that says something, or its type's name."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
