"""A verb of the command line: its flags are the fields of a dataclass, its help has a section for each kind of flag."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from dittools.cli._flags import INPUT, MODEL, OTHER, RESULT, SETTINGS, VIDEO

ALIASES = {
    "--out": "--output",
    "--num-inference-steps": "--steps",
    "--guidance-scale": "--guidance",
    "--num-frames": "--frames",
}
"""Spellings that are understood and not shown: our own old ones, and those of diffusers."""
LAST = (VIDEO, INPUT, SETTINGS, MODEL, RESULT, OTHER)
"""Sections of the help that verbs share, in their order; what a verb has of its own comes before them."""
WHOLE = ("--sweep", "--join", "--reference", "--set", "--lora")
"""Flags that take several values which may hold commas."""
_NEGATIVE = re.compile(r"-\.?\d.*")


def takes(flags: type) -> Callable[[Callable[[typer.Context, Any], None]], Callable[..., None]]:
    """Make a verb of a function of its context and its flags, with one flag for each field of a dataclass.

    Args:
        flags: fields are ``Annotated`` with a `typer.Option` or `typer.Argument`; see `dittools.cli._flags`.
    """
    hints = typing.get_type_hints(flags, include_extras=True)
    defaults = {f.name: f.default for f in dataclasses.fields(flags)}
    own_first = dict.fromkeys(name for cls in flags.__mro__ for name in vars(cls).get("__annotations__", ()))
    kind, empty = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.empty
    known = [
        inspect.Parameter(name, kind, annotation=hints[name], default=empty if value is dataclasses.MISSING else value)
        for name, value in ((name, defaults[name]) for name in own_first)
    ]

    def decorate(run: Callable[[typer.Context, Any], None]) -> Callable[..., None]:
        def command(ctx: typer.Context, **given: Any) -> None:
            run(ctx, flags(**given))

        context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
        command.__signature__ = inspect.Signature([context, *known])
        command.__annotations__ = {one.name: one.annotation for one in (context, *known)}
        return command

    return decorate


def typed(ctx: typer.Context) -> set[str]:
    """Names of the flags that the command line holds, and that are no defaults."""
    return {name for name in ctx.params if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"}


class Command(TyperCommand):
    """A verb as the parser has it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self.plain(args))

    def plain(self, args: Sequence[str]) -> list[str]:
        """Arguments with one value for each flag, in the spelling that is shown.

        ``--seeds 0 1,2`` or ``--seeds=0 1 2`` is ``--seeds 0 --seeds 1 --seeds 2``.
        """
        flags = {name: one for one in self.params for name in (*one.opts, *one.secondary_opts) if name.startswith("-")}
        found: list[str] = []
        many = value_of = ""  # the flag with several values that is open; the flag whose one value comes next
        for place, argument in enumerate(args):
            if value_of:
                found.append(argument)
                value_of = ""
                continue
            if argument == "--":
                return [*found, *args[place:]]
            if not argument.startswith("-") or _NEGATIVE.fullmatch(argument):
                found += _several(many, argument) if many else [argument]
                continue
            name, equals, value = argument.partition("=")
            name = name if name in flags else ALIASES.get(name, name)
            one = flags.get(name)
            many = name if one is not None and one.multiple else ""
            if many:
                found += _several(name, value) if equals else [] if self._follows(args, place) else [name]
                continue
            found.append(name + equals + value)
            value_of = name if one is not None and not (equals or one.is_flag or one.count) else ""
        return found

    @staticmethod
    def _follows(args: Sequence[str], place: int) -> bool:
        """Whether a value comes after the flag at this place."""
        after = args[place + 1] if place + 1 < len(args) else "-"
        return not after.startswith("-") or bool(_NEGATIVE.fullmatch(after))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the flags, section by section: those of this verb alone first."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for one in self.get_params(ctx):
            row = one.get_help_record(ctx)
            if row is not None:
                sections.setdefault(getattr(one, "rich_help_panel", None) or OTHER, []).append(row)
        for title, rows in sorted(sections.items(), key=lambda one: LAST.index(one[0]) if one[0] in LAST else -1):
            with formatter.section(title):
                formatter.write_dl(rows, col_max=26)


def _several(flag: str, text: str) -> list[str]:
    """One flag for each value of a text."""
    values = [text] if flag in WHOLE else [part.strip() for part in text.split(",")]
    return [part for value in values for part in (flag, value)]
