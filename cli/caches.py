"""`dittools caches`: the ways to reuse steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dittools.cli._command import takes
from dittools.cli._flags import Common
from dittools.cli.listing import found_in, tell
from dittools.cli.output import Output

NAME = "caches"
SHORT = "List the ways to reuse steps."
HELP = """List the step caches and the options each takes, or show one of them.

An option follows the cache's name: --cache teacache:threshold=0.1:max_consecutive_skips=3."""
EXAMPLES = """\b
Examples:
  dittools caches
  dittools caches teacache --json
  dittools generate --cache easycache:threshold=0.05 --weights embedded"""


@dataclass(frozen=True, kw_only=True)
class Flags(Common):
    name: Annotated[str | None, typer.Argument(help="A cache; all by default.", show_default=False)] = None


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.caches import CACHES

    tell((CACHES,), found_in((CACHES,), flags.name), Output.of(flags))
