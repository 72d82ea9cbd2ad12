"""`dittools methods`: the ways to choose what attention skips, and what a window can gain."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import typer

from dittools.cli import _flags as f
from dittools.cli._command import takes
from dittools.cli.listing import found_in, tell
from dittools.cli.output import Output, table
from dittools.pipelines.errors import BadInput, first_line

NAME = "methods"
SHORT = "List the ways to choose what is skipped, and to make up for it."
HELP = """List the methods and the corrections, and the options each takes in a --config file, or show one of them.

With --grid, gna says what a window can gain there before anything is run: how much of the attention it is, and how
much of it tiles and blocks let a kernel skip."""
EXAMPLES = """\b
Examples:
  dittools methods
  dittools methods radial --json
  dittools methods gna --grid 21x45x80 --window 21x24x40 --stride 2x8x8
  dittools methods gna --grid 64x64 --window 24x24 --tile 16x8 --json

\b
Axes are frames x rows x columns of tokens, rows x columns for an image, or
one number for all three."""

AXES = "FxHxW"
# What is simulated in seconds and in little memory.
LONGEST, MOST_BLOCKS = 2048, 4096


SIMULATE = "Simulation of a window"


def _axes_flag(name: str, what: str) -> object:
    return f.flag(name, what, SIMULATE, AXES)


@dataclass(frozen=True, kw_only=True)
class Flags(f.Common):
    name: Annotated[str | None, typer.Argument(help="A method or correction; all by default.", show_default=False)] = (
        None
    )
    grid: Annotated[str | None, _axes_flag("--grid", "Simulate a window of gna on this token grid.")] = None
    window: Annotated[str | None, _axes_flag("--window", "Tokens a query sees along each axis.")] = None
    stride: Annotated[str | None, _axes_flag("--stride", "Queries that share a window.  [default: 1]")] = None
    dilation: Annotated[str | None, _axes_flag("--dilation", "Step between keys of a window.  [default: 1]")] = None
    tile: Annotated[
        str | None, _axes_flag("--tile", "Tokens of a query tile.  [default: one that suits grid and block]")
    ] = None
    key_tile: Annotated[str | None, _axes_flag("--key-tile", "Tokens of a key tile.  [default: --tile]")] = None
    block: Annotated[
        int | None, f.flag("--block", "Tokens in a block of dittools' mask.  [default: 128]", SIMULATE, "N")
    ] = None


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.corrections import CORRECTIONS
    from dittools.methods import METHODS

    output, registries = Output.of(flags), (METHODS, CORRECTIONS)
    name, grid, block = found_in(registries, flags.name), flags.grid, flags.block
    axes = ("window", "stride", "dilation", "tile", "key_tile")
    given = {name: getattr(flags, name) for name in axes if getattr(flags, name) is not None}
    if grid is not None:
        facts = _simulated(name, grid, given, 128 if block is None else block)
        return output.data({"simulation": facts}, lambda: _simulation(facts))
    if given or block is not None:
        flag = next(iter(given), "block").replace("_", "-")
        raise BadInput(f"--{flag} is for a simulation: add --grid, as in `dittools methods gna --grid 21x45x80`")
    tell(registries, name, output)


def _simulated(name: str | None, grid: str, given: dict[str, str], block: int) -> dict[str, Any]:
    """What the simulator says, as plain values. Raises BadInput."""
    import dataclasses

    from dittools.methods.gna import GNA
    from dittools.simulate import simulate
    from dittools.tokens import TokenGrid

    if name != "gna":
        raise BadInput(f"--grid simulates windows of gna, got {name or 'no method'}: use `dittools methods gna --grid`")
    if "window" not in given:
        raise BadInput("--grid needs a window to simulate: add --window, for example --window 12x24x24")
    if block < 1:
        raise BadInput(f"--block must be at least 1, got {block}")
    shape = _axes("grid", grid)
    if max(shape) > LONGEST or prod(shape) > MOST_BLOCKS * block:
        raise BadInput(
            f"--grid {grid} is too large to simulate: at most {LONGEST} tokens along an axis "
            f"and {MOST_BLOCKS} blocks of {block}"
        )
    axes = {flag: _axes(flag, text) for flag, text in given.items()}
    key_tile = axes.pop("key_tile", None)
    try:
        return dataclasses.asdict(simulate(TokenGrid(*shape), GNA(**axes), block, key_tile))
    except ValueError as error:
        raise BadInput(first_line(error)) from None


def _axes(flag: str, text: str) -> tuple[int, int, int]:
    """Frames, rows and columns from "FxHxW", "HxW" or "N". Raises BadInput."""
    parts = text.lower().split("x")
    if not 1 <= len(parts) <= 3 or not all(p.isascii() and p.isdigit() and 0 < int(p) < 10**6 for p in parts):
        raise BadInput(f"--{flag.replace('_', '-')} must be {AXES}, for example 21x45x80, got {text!r}")
    numbers = [int(part) for part in parts]
    return tuple(numbers * 3 if len(numbers) == 1 else [1] * (3 - len(numbers)) + numbers)


def _simulation(facts: dict[str, Any]) -> str:
    size = {key: "x".join(map(str, value)) for key, value in facts.items() if isinstance(value, tuple)}
    asked = [(key.replace("_", " "), size[key]) for key in ("grid", "window", "stride", "dilation", "tile", "key_tile")]
    found = [
        ("by token", f"{facts['token_density']:.2%}", f"{facts['flop_speedup']:.2f}x", "a kernel without tiles"),
        (
            "by tile, mean",
            f"{1 / facts['speedup_mean']:.2%}",
            f"{facts['speedup_mean']:.2f}x",
            f"{facts['visited_mean']:.1f} of {facts['tiles']} key tiles a query tile, {facts['padding']:.1%} padding",
        ),
        (
            "by tile, worst",
            f"{1 / facts['speedup_worst']:.2%}",
            f"{facts['speedup_worst']:.2f}x",
            f"{facts['visited_worst']} of {facts['tiles']} key tiles for the slowest query tile",
        ),
        (
            "by block",
            f"{facts['block_density']:.2%}",
            f"{facts['block_speedup']:.2f}x",
            f"dittools: blocks of {facts['block_size']} in tile order, no padding",
        ),
    ]
    head = table(("AXES", "FRAMES x ROWS x COLUMNS"), asked)
    return f"{head}\n\n{table(('COMPUTED', 'OF DENSE', 'AT MOST', 'BECAUSE'), found)}"
