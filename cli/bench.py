"""`dittools bench`: how fast the kernels, and whole denoiser calls, are on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dittools.cli.flags import Debug
from dittools.cli.output import Output
from dittools.pipelines.errors import BadInput

NAME = "bench"
HELP = "Measure kernels and denoiser calls on this machine, each checked before it is timed."
EXAMPLES = """\b
Examples:
  dittools bench kernel --json kernels.json
  dittools bench model --model wan --size 14b --height 720 --width 1280 --frames 81 --sparsity 0.8"""

app = typer.Typer(name=NAME, help=HELP, short_help="Measure kernels and denoiser calls.", epilog=EXAMPLES)
Flag = typer.Option

KERNEL_HELP = """Time our kernels, dense attention and peers that are installed, in turn, on the same tensors.

r = dense time x kept share / sparse time, against the fastest dense kernel of this machine; only pairs that were asked
for count. Every result is checked against fp32 before it is timed. One that is wrong is named and not timed, and the
exit code is 1. burst: single calls with pauses; sustained: back to back.

Rows go to stderr as they come, the table to stdout. With --json, the file is written after every row, and rows that are
there already from the same code, settings and card are kept: a command that was cut off goes on when given again.

On a CPU the shapes are small and the kernel is plain PyTorch: good for a check, not for conclusions."""
KERNEL_EXAMPLES = """\b
Examples:
  dittools bench kernel --json docs/measured/kernels_h100.json --limit 560
  dittools bench kernel --rows uniform,ragged --shape 12x32768 --density 0.1 --no-peers
  dittools bench kernel --check --json hopper_check.json
  dittools bench kernel --device cpu --shape 2x2048 --seconds 1"""


@app.command("kernel", help=KERNEL_HELP, short_help="Time kernels against dense attention.", epilog=KERNEL_EXAMPLES)
def kernel(
    ctx: typer.Context,
    rows: Annotated[str | None, Flag(metavar="NAME,...", help="Only these rows of the table.")] = None,
    shape: Annotated[str | None, Flag(metavar="HxS,...", help="Heads x tokens in place of the rows' own.")] = None,
    head_dim: Annotated[int | None, Flag(help="Head dim in place of the rows' own.")] = None,
    density: Annotated[str | None, Flag(metavar="D,...", help="Kept shares in place of the rows' own.")] = None,
    implementation: Annotated[
        str | None,
        Flag(metavar="hopper|triton|portable", help="Only this kernel of ours.  [default: all that can run]"),
    ] = None,
    dtype: Annotated[str, Flag(help="auto, bf16, fp16 or fp32. auto: bf16 on CUDA, fp32 on the CPU.")] = "auto",
    device: Annotated[str, Flag(help="auto, cpu or cuda.")] = "auto",
    peers: Annotated[bool, Flag(help="Also other people's kernels that are installed.")] = True,
    burst: Annotated[bool, Flag(help="Single calls with pauses.")] = True,
    sustained: Annotated[bool, Flag(help="Back to back for seconds.")] = True,
    seconds: Annotated[float | None, Flag(help="Timing of a row.  [default: 12 on CUDA, 2 on a CPU]")] = None,
    limit: Annotated[float, Flag(help="Seconds after which it stops, on a card in the middle of a row too.")] = 3600,
    check: Annotated[
        bool, Flag("--check", help="Check the kernel that still has to prove itself on this type of card, instead.")
    ] = False,
    json: Annotated[str | None, Flag("--json", metavar="FILE", help="Write results here, and go on from it.")] = None,
    debug: Debug = False,
) -> None:
    from dittools.cli.bench_kernel import Asked, measure, prove

    asked = Asked(
        rows=rows, shape=shape, head_dim=head_dim, density=density, implementation=implementation, dtype=dtype,
        device=device, peers=peers, burst=burst, sustained=sustained, seconds=seconds, limit=limit,
        path=_file(json), command=ctx.obj["command"],
    )  # fmt: skip
    out = Output()
    fine = prove(asked, out) if check else measure(asked, out)
    if not fine:
        raise typer.Exit(1)


MODEL_HELP = """Time one denoiser call of a model at its real shapes: dense, dense compiled, and sparse through
dittools.accelerate, with everything that a sparse call needs.

The weights are random, so this says how fast, and nothing about pictures. The sparse attention of one layer is checked
against fp32 first; a result that is wrong is not timed, and the exit code is 1. With --json the file is written after
every part, and parts that are there already are kept.

Several methods run one after another in the same model. What each costs besides attention (order, selection, lists,
permutes, correction) is told as a share of its attention; a few layers are enough for that."""
MODEL_EXAMPLES = """\b
Examples:
  dittools bench model --model wan --size 14b --height 720 --width 1280 --frames 81 --sparsity 0.8
  dittools bench model --size 1.3b --height 480 --width 832 --json docs/measured/model_h100.json
  dittools bench model --model flux --method draft --json docs/measured/model_h100_flux.json
  dittools bench model --size 14b --layers 2 --method svg,draft,radial,gna,svg2 --no-compile --json costs.json
  dittools bench model --size tiny --height 256 --width 256 --frames 17 --device cpu"""


@app.command("model", help=MODEL_HELP, short_help="Time one denoiser call.", epilog=MODEL_EXAMPLES)
def model(
    ctx: typer.Context,
    model: Annotated[
        str, Flag(metavar="wan|hunyuan|hunyuan-video-1.5|cogvideox|ltx|flux|qwen_image", help="Model family.")
    ] = "wan",
    size: Annotated[str | None, Flag(help="Which of its sizes; each has a tiny one.  [default: the family's]")] = None,
    layers: Annotated[int | None, Flag(help="Layers in place of the size's own.")] = None,
    heads: Annotated[int | None, Flag(help="Heads in place of the size's own.")] = None,
    height: Annotated[int | None, Flag(help="Pixels.  [default: the size's]")] = None,
    width: Annotated[int | None, Flag(help="Pixels.  [default: the size's]")] = None,
    frames: Annotated[int | None, Flag(help="Frames.  [default: the size's]")] = None,
    method: Annotated[
        str | None,
        Flag(
            metavar="NAME[:OPTION=VALUE...],...",
            help="How to choose what is skipped, such as svg2:iterations=2.  [default: svg, draft for images]",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        Flag(
            metavar="FILE",
            help="Of dittools calibrate, for methods that need one.  [default: measured on the random weights]",
        ),
    ] = None,
    sparsity: Annotated[float, Flag(help="Share of attention to skip, in [0, 1).")] = 0.8,
    dense_layers: Annotated[int, Flag(help="First layers that stay dense.")] = 1,
    repeats: Annotated[int, Flag(help="Timed calls of each kind.")] = 4,
    compile_: Annotated[
        bool | None, Flag("--compile/--no-compile", help="Also with compiled blocks.  [default: on CUDA]")
    ] = None,
    dtype: Annotated[str, Flag(help="auto, bf16, fp16 or fp32. auto: bf16 on CUDA, fp32 on the CPU.")] = "auto",
    device: Annotated[str, Flag(help="auto, cpu or cuda.")] = "auto",
    json: Annotated[str | None, Flag("--json", metavar="FILE", help="Write results here, and go on from it.")] = None,
    debug: Debug = False,
) -> None:
    from dittools.cli.bench_model import Asked, measure

    asked = Asked(
        model=model, size=size, layers=layers, heads=heads, height=height, width=width, frames=frames, method=method,
        profile=profile, sparsity=sparsity, dense_layers=dense_layers, repeats=repeats, compile=compile_, dtype=dtype,
        device=device, path=_file(json), command=ctx.obj["command"],
    )  # fmt: skip
    if not measure(asked, Output()):
        raise typer.Exit(1)


def _file(name: str | None) -> Path | None:
    """The file of --json. Raises BadInput for an empty name."""
    if name == "":
        raise BadInput("--json is empty: give the name of a file, or leave it out")
    return None if name is None else Path(name).expanduser()


def add_to(parent: Any) -> None:
    """Put the group under the `dittools` command."""
    parent.add_typer(app, name=NAME)
