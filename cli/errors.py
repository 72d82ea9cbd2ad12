"""Every error as one line, and the exit code that goes with it."""

from __future__ import annotations

import difflib
import errno
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import typer

from dittools.cli.output import one_line
from dittools.pipelines.errors import BadInput, RunFailed, first_line

BAD_INPUT, FAILED = 2, 1

# typer brings its own copy of click from some version on; both derive BadParameter from UsageError
UsageError = typer.BadParameter.__mro__[1]


def told(error: Exception, given: Sequence[str]) -> int:
    """Print the line, after the traceback where --debug asks for it, and give the exit code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:
        return FAILED  # who reads the result has seen enough
    if "--debug" in given:
        traceback.print_exc()
    text, code = explain(error, given)
    print(f"error: {_LONG.sub(_cut, text)}", file=sys.stderr)
    return code


def _cut(word: re.Match) -> str:
    """The start of a word that is no name any more."""
    return f"{word[0][:_LONGEST]}... ({len(word[0])} letters)"


_LONGEST = 250
_LONG = re.compile(rf"\S{{{_LONGEST + 1},}}")


def explain(error: Exception, given: Sequence[str] = ()) -> tuple[str, int]:
    """The line to print for arguments as given, and the exit code."""
    if isinstance(error, UsageError):
        return one_line(_usage(error, given)), BAD_INPUT
    if isinstance(error, BadInput):
        return one_line(str(error)), BAD_INPUT
    if isinstance(error, RunFailed):
        return one_line(str(error)), FAILED
    return one_line(f"{type(error).__name__}: {first_line(error)} (--debug shows where)"), FAILED


def _usage(error: Any, given: Sequence[str]) -> str:
    """What the command line parser found, and the command to run for the right flags."""
    context = getattr(error, "ctx", None)
    text = error.format_message().rstrip(".")
    name = getattr(error, "option_name", None)
    if type(error).__name__ == "NoSuchOption" and name:
        text = f"no such option {name}"
        flags = [flag for parameter in context.command.params for flag in parameter.opts] if context else []
        near = difflib.get_close_matches(name, [*flags, "--help"], n=1, cutoff=0.5)
        if near:
            text += f" (did you mean {near[0]}?)"
    text = _number_wanted(error) or text
    where = context.command_path if context else _verb(given)
    return f"{text[:1].lower()}{text[1:]}; `{where} --help` lists what there is"


def _verb(given: Sequence[str]) -> str:
    """The command that arguments begin with, for an error that does not say where it came up."""
    from dittools.cli.app import command

    here, path = command(), ["dittools"]
    for name in given:
        here = getattr(here, "commands", {}).get(name)
        if here is None:
            break
        path.append(name)
    return " ".join(path)


def _number_wanted(error: Any) -> str | None:
    """What a flag needed and what it got, where the parser kept the text it could not read as a number."""
    try:
        found = error.__cause__.errors()[0]
        kind = {"int": "a whole number", "flo": "a number"}[found["type"][:3]]
        return f"{error.param.opts[0]} must be {kind}, got {found['input']!r}"
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
