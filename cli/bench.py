"""`dittools bench`: how fast the kernels, and whole denoiser calls, are on this machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from dittools.cli import _flags as f
from dittools.cli._command import Command, takes
from dittools.cli.output import Output
from dittools.pipelines.errors import BadInput

NAME = "bench"
HELP = "Measure kernels and denoiser calls on this machine, each checked before it is timed."
EXAMPLES = """\b
Examples:
  dittools bench kernel --output kernels.json
  dittools bench model --size 14b --height 720 --width 1280 --frames 81"""

ROWS, TIMING = "Rows", "Timing"

app = typer.Typer(name=NAME, help=HELP, short_help="Measure kernels and denoiser calls.", epilog=EXAMPLES)


@app.callback()
def part_is_there() -> None:
    """Raise BadInput where dittools was installed without its benchmarks."""
    if importlib.util.find_spec("dittools.benchmarks") is None:
        raise BadInput(
            "dittools bench: the benchmarks are not in the installed package: clone the repository, "
            "and there pip install -e ."
        )


KERNEL_HELP = """Time our kernels, dense attention and peers that are installed, in turn, on the same tensors.

r = dense time x kept share / sparse time, against the fastest dense kernel of this machine; only pairs that were asked
for count. Every result is checked against fp32 before it is timed. One that is wrong is named and not timed, and the
exit code is 1. burst: single calls with pauses; sustained: back to back.

Rows go to stderr as they come, the table to stdout. With --json, the file is written after every row, and rows that are
there already from the same code, settings and card are kept: a command that was cut off goes on when given again.

On a CPU the shapes are small and the kernel is plain PyTorch: good for a check, not for conclusions."""
KERNEL_EXAMPLES = """\b
Examples:
  dittools bench kernel --output docs/measured/kernels_h100.json --limit 560
  dittools bench kernel --rows uniform,ragged --shape 12x32768 --no-peers
  dittools bench kernel --check --output hopper_check.json
  dittools bench kernel --device cpu --shape 2x2048 --seconds 1"""


class BenchCommand(Command):
    """A verb whose --json once named the file of its results, which is still understood."""

    def plain(self, args: Sequence[str]) -> list[str]:
        named = [one.replace("--json=", "--output=", 1) if one.startswith("--json=") else one for one in args]
        after = [*named[1:], "-"][: len(named)]
        files = [one == "--json" and not value.startswith("-") for one, value in zip(named, after, strict=True)]
        return super().plain(["--output" if file else one for one, file in zip(named, files, strict=True)])


ResultFile = Annotated[str | None, f.flag("--output -o", "JSON of the results, to be gone on with.", f.RESULT, "FILE")]


@dataclass(frozen=True, kw_only=True)
class KernelFlags(f.Common):
    """The flags of `bench kernel`; None where one was not given and its default depends on something else."""

    rows: Annotated[list[str] | None, f.flag("--rows", "Only these rows of the table.", ROWS, "NAME,...")] = None
    shape: Annotated[
        list[str] | None, f.flag("--shape", "Heads x tokens in place of the rows' own.", ROWS, "HxS,...")
    ] = None
    head_dim: Annotated[int | None, f.flag("--head-dim", "Head dim in place of the rows' own.", ROWS, "N")] = None
    density: Annotated[
        list[str] | None, f.flag("--density", "Kept shares in place of the rows' own.", ROWS, "D,...")
    ] = None
    implementation: Annotated[
        str | None,
        f.flag(
            "--implementation", "Only this kernel of ours.  [default: all that can run]", ROWS, "hopper|triton|portable"
        ),
    ] = None
    peers: Annotated[bool, f.flag("--peers/--no-peers", "Also other people's kernels that are installed.", ROWS)] = True
    burst: Annotated[bool, f.flag("--burst/--no-burst", "Single calls with pauses.", TIMING)] = True
    sustained: Annotated[bool, f.flag("--sustained/--no-sustained", "Back to back for seconds.", TIMING)] = True
    seconds: Annotated[
        float | None, f.flag("--seconds", "Timing of a row.  [default: 12 on CUDA, 2 on a CPU]", TIMING, "X")
    ] = None
    limit: Annotated[
        float, f.flag("--limit", "Seconds after which it stops, on a card inside a row too.", TIMING, "X")
    ] = 3600
    check: Annotated[
        bool, f.flag("--check", "Check kernels that still have to prove themselves here, instead.", TIMING)
    ] = False
    device: f.Device = "auto"
    dtype: f.Dtype = "auto"
    output: ResultFile = None


@app.command(
    "kernel",
    cls=BenchCommand,
    help=KERNEL_HELP,
    short_help="Time kernels against dense attention.",
    epilog=KERNEL_EXAMPLES,
)
@takes(KernelFlags)
def kernel(ctx: typer.Context, flags: KernelFlags) -> None:
    from dittools.cli.bench_kernel import measure, prove

    path, command, out = _file(flags.output), ctx.obj["command"], Output.of(flags)
    fine = prove(flags, path, command, out) if flags.check else measure(flags, path, command, out)
    if not fine:
        raise typer.Exit(1)


MODEL_HELP = """Time one denoiser call of a model at its real shapes: dense, dense compiled, and sparse through
dittools.accelerate, with everything that a sparse call needs.

The weights are random, so this says how fast, and nothing about pictures. The sparse attention of one layer is checked
against fp32 first; a result that is wrong is not timed, and the exit code is 1. With --output the file is written after
every part, and parts that are there already are kept.

Several methods run one after another in the same model. What each costs besides attention (order, selection, lists,
permutes, correction) is told as a share of its attention; a few layers are enough for that."""
MODEL_EXAMPLES = """\b
Examples:
  dittools bench model --size 14b --height 720 --width 1280 --frames 81
  dittools bench model --size 1.3b --height 480 --width 832
  dittools bench model --model flux --method draft --output flux.json
  dittools bench model --size 14b --layers 2 --method svg,draft --no-compile
  dittools bench model --size tiny --frames 17 --device cpu"""


SHAPE = "Model and shape"


@dataclass(frozen=True, kw_only=True)
class ModelFlags(f.Common):
    """The flags of `bench model`; None where one was not given and its default depends on something else."""

    model: Annotated[
        str, f.flag("--model", "Family.", SHAPE, "wan|hunyuan|hunyuan-video-1.5|cogvideox|ltx|flux|qwen_image")
    ] = "wan"
    size: Annotated[
        str | None, f.flag("--size", "Which of its sizes; each has a tiny one.  [default: the family's]", SHAPE, "NAME")
    ] = None
    layers: Annotated[int | None, f.flag("--layers", "Layers in place of the size's own.", SHAPE, "N")] = None
    heads: Annotated[int | None, f.flag("--heads", "Heads in place of the size's own.", SHAPE, "N")] = None
    height: Annotated[int | None, f.flag("--height", "Pixels.  [default: the size's]", SHAPE, "N")] = None
    width: Annotated[int | None, f.flag("--width", "Pixels.  [default: the size's]", SHAPE, "N")] = None
    frames: Annotated[int | None, f.flag("--frames", "Frames.  [default: the size's]", SHAPE, "N")] = None
    method: Annotated[
        list[str] | None,
        f.flag(
            "--method",
            "How to choose what is skipped, such as svg2:iterations=2.  [default: svg, draft for images]",
            f.SETTINGS,
            "NAME[:OPTION=VALUE...],...",
        ),
    ] = None
    correction: Annotated[
        list[str] | None,
        f.flag(
            "--correction",
            "What makes up for what is skipped, each with every method.  [default: what the method brings]",
            f.SETTINGS,
            "NAME[:OPTION=VALUE...],...",
        ),
    ] = None
    profile: Annotated[
        str | None,
        f.flag(
            "--profile",
            "Of dittools calibrate, for methods that need one.  [default: measured on the random weights]",
            f.SETTINGS,
            "FILE",
        ),
    ] = None
    sparsity: Annotated[float, f.flag("--sparsity", "Share of attention to skip, in [0, 1).", f.SETTINGS, "X")] = 0.8
    dense_layers: Annotated[int, f.flag("--dense-layers", "First layers that stay dense.", f.SETTINGS, "N")] = 1
    repeats: Annotated[int, f.flag("--repeats", "Timed calls of each kind.", TIMING, "N")] = 4
    compile: Annotated[
        bool | None, f.flag("--compile/--no-compile", "Also with compiled blocks.  [default: on CUDA]", TIMING)
    ] = None
    device: f.Device = "auto"
    dtype: f.Dtype = "auto"
    output: ResultFile = None


@app.command("model", cls=BenchCommand, help=MODEL_HELP, short_help="Time one denoiser call.", epilog=MODEL_EXAMPLES)
@takes(ModelFlags)
def model(ctx: typer.Context, flags: ModelFlags) -> None:
    from dittools.cli.bench_model import measure

    if not measure(flags, _file(flags.output), ctx.obj["command"], Output.of(flags)):
        raise typer.Exit(1)


def _file(name: str | None) -> Path | None:
    """The file of --output. Raises BadInput for an empty name."""
    if name == "":
        raise BadInput("--output is empty: give the name of a file, or leave it out")
    return None if name is None else Path(name).expanduser()


def add_to(parent: Any) -> None:
    """Put the group under the `dittools` command."""
    parent.add_typer(app, name=NAME)
