"""`dittools inspect`: what the attention of chosen heads looks like in a run, and what a method makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dittools.cli import _flags as f
from dittools.cli._command import takes
from dittools.cli.output import Output

NAME = "inspect"
SHORT = "Show attention maps, head classes, masks and recall of a run."
HELP = """Run a prompt with a method, and write maps of chosen heads: what they attend to, what kind of head each is,
which blocks were computed, and how much of the true attention these hold (recall).

The folder gets index.html, which needs no other file, the pictures as PNG, and record.json."""
EXAMPLES = """\b
Examples:
  dittools inspect --weights embedded --method svg --output maps
  dittools inspect --weights embedded --layers 1,4 --heads 0,1 --at 4,12

\b
Steps, layers and heads count from 0."""


def _some(name: str, what: str) -> object:
    return f.flag(name, what, "Maps", "N,N,...")


@dataclass(frozen=True, kw_only=True)
class Flags(f.Settings, f.Run):
    layers: Annotated[list[str] | None, _some("--layers", "Layers to show.  [default: three]")] = None
    heads: Annotated[list[str] | None, _some("--heads", "Heads to show.  [default: the first four]")] = None
    at: Annotated[list[str] | None, _some("--at", "Steps to show.  [default: two]")] = None
    prompt: f.Prompt = None
    seed: f.Seed = 0
    output: f.OutputFolder = "inspect"


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.cli.flag_checks import check_numbers, check_run, numbers
    from dittools.pipelines import places

    check_run(flags)
    wanted = {name: numbers(name, getattr(flags, name[2:])) for name in ("--layers", "--heads", "--at")}
    place = places.new_folder("--output", flags.output, "maps")
    if flags.steps is not None:
        check_numbers("--at", wanted["--at"] or (), flags.steps)

    from dittools.cli.request import check

    request = check(flags, None)  # before PyTorch is imported, which looking at heads takes

    from dittools.cli.inspect_run import run

    output = Output.of(flags)
    record = run(request, wanted, place, ctx.obj["command"], output)
    output.data(record, lambda: record["output"])
