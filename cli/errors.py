"""Every error as one line, and the exit code that goes with it."""

from __future__ import annotations

import difflib
from typing import Any

import typer

from dittools.cli.output import one_line
from dittools.pipelines.errors import BadInput, RunFailed, first_line

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130

# typer brings its own copy of click from some version on; both derive BadParameter from UsageError
UsageError = typer.BadParameter.__mro__[1]


def explain(error: Exception) -> tuple[str, int]:
    """The line to print and the exit code."""
    if isinstance(error, UsageError):
        return one_line(_usage(error)), BAD_INPUT
    if isinstance(error, BadInput):
        return one_line(str(error)), BAD_INPUT
    if isinstance(error, RunFailed):
        return one_line(str(error)), FAILED
    return one_line(f"{type(error).__name__}: {first_line(error)} (--debug shows where)"), FAILED


def _usage(error: Any) -> str:
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
    where = context.command_path if context else "dittools"
    return f"{text[:1].lower()}{text[1:]}; `{where} --help` lists what there is"


def _number_wanted(error: Any) -> str | None:
    """What a flag needed and what it got, where the parser kept the text it could not read as a number."""
    try:
        found = error.__cause__.errors()[0]
        kind = {"int": "a whole number", "flo": "a number"}[found["type"][:3]]
        return f"{error.param.opts[0]} must be {kind}, got {found['input']!r}"
    except (AttributeError, IndexError, KeyError, TypeError):
        return None
