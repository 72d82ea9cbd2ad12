"""`dittools inspect`: what the attention of chosen heads looks like in a run, and what a method makes of it."""

from __future__ import annotations

from typing import Annotated

import typer

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output

NAME = "inspect"
SHORT = "Show attention maps, head classes, masks and recall of a run."
HELP = """Run a prompt with a method, and write maps of chosen heads: what they attend to, what kind of head each is,
which blocks were computed, and how much of the true attention these hold (recall).

The folder gets index.html, which needs no other file, the pictures as PNG, and record.json."""
EXAMPLES = """\b
Examples:
  dittools inspect --weights embedded --method svg --sparsity 0.8 --out maps
  dittools inspect --weights embedded --method paro --layers 1,4,7 --heads 0,1 --at 4,12 --out maps

\b
Steps, layers and heads count from 0."""

Flag = typer.Option


def command(
    ctx: typer.Context,
    out: Annotated[str, Flag("--out", "-o", metavar="FOLDER", help="A new or empty folder.")] = "inspect",
    layers: Annotated[str | None, Flag(metavar="N,N,...", help="Layers to show.  [default: three]")] = None,
    heads: Annotated[str | None, Flag(metavar="N,N,...", help="Heads to show.  [default: the first four]")] = None,
    at: Annotated[str | None, Flag(metavar="N,N,...", help="Steps to show.  [default: two]")] = None,
    model: Annotated[str, Flag(help="Model family; `dittools models` lists them.")] = "wan",
    weights: Annotated[str, Flag(metavar="auto|embedded|REPO|PATH", help="As for generate.")] = "auto",
    prompt: Annotated[str | None, Flag(help="What to draw.  [default: one that suits the weights]")] = None,
    method: Annotated[str | None, Flag(help="As for generate; dense shows maps alone.  [default: auto]")] = None,
    sparsity: Annotated[float | None, Flag(help="Share of attention to skip.  [default: 0.8]")] = None,
    profile: Annotated[str | None, Flag(metavar="FILE", help="Of dittools calibrate, or a name that ships.")] = None,
    dense_steps: Annotated[str | None, Flag(metavar="SHARE|COUNT", help="As for generate.  [default: 0.2]")] = None,
    dense_layers: Annotated[int | None, Flag(help="First layers that stay dense.  [default: 1]")] = None,
    refresh: Annotated[int | None, Flag(help="Steps for which a choice is used.  [default: 1]")] = None,
    correction: Annotated[str | None, Flag(help="What makes up for what is skipped.  [default: none]")] = None,
    steps: Annotated[int | None, Flag(help="Denoising steps.  [default: the model's]")] = None,
    height: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    frames: Annotated[int | None, Flag(help="Frames, 4n + 1 for Wan.  [default: the model's]")] = None,
    guidance: Annotated[float | None, Flag(help="Classifier-free guidance.  [default: the model's]")] = None,
    seed: Annotated[int, Flag(help="Fixes the noise.")] = 0,
    config: Annotated[str | None, Flag(metavar="FILE", help="JSON of a dittools.Config; flags win over it.")] = None,
    device: Annotated[str, Flag(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, Flag(help="auto, bf16, fp16 or fp32.")] = "auto",
    offload: Annotated[str, Flag(help="none, model or group.")] = "none",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    from dittools.cli.asked import Asked

    asked = Asked(
        model=model,
        prompt=prompt,
        weights=weights,
        method=method,
        sparsity=sparsity,
        dense_steps=dense_steps,
        dense_layers=dense_layers,
        refresh=refresh,
        correction=correction,
        profile=profile,
        config=config,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance=guidance,
        seed=seed,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    asked.check_settings()
    wanted = {
        "--layers": numbers("--layers", layers),
        "--heads": numbers("--heads", heads),
        "--at": numbers("--at", at),
    }
    from dittools.pipelines import places

    place = places.new_folder("--out", out, "maps")

    if steps is not None:
        check_numbers("--at", wanted["--at"] or (), steps)

    from dittools.cli.request import check

    request = check(asked, None)  # before PyTorch is imported, which looking at heads takes

    from dittools.cli.inspect_run import run

    sink = Output(as_json)
    record = run(request, wanted, place, ctx.obj["command"], sink)
    sink.data(record, lambda: record["output"])


COUNTED = {"--at": "steps", "--layers": "layers", "--heads": "heads"}


def check_numbers(flag: str, given: tuple[int, ...], count: int) -> None:
    """Raises BadInput for a number of a step, layer or head that is beyond the last one."""
    from dittools.pipelines.errors import BadInput

    if given and max(given) >= count:
        raise BadInput(f"{flag} {max(given)}: there are {count} {COUNTED[flag]}, 0 to {count - 1}")


def numbers(flag: str, given: str | None) -> tuple[int, ...] | None:
    """Whole numbers from 0 with commas between. Raises BadInput."""
    from dittools.pipelines.errors import BadInput

    if given is None:
        return None
    parts = [part.strip() for part in given.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 7 for part in parts):
        raise BadInput(f"{flag} must be whole numbers with commas between, such as 0,3, got {given!r}")
    return tuple(sorted({int(part) for part in parts}))
