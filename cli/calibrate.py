"""`dittools calibrate`: dense runs of a few prompts, measured, as a profile for methods that decide ahead."""

from __future__ import annotations

from typing import Annotated

import typer

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output

NAME = "calibrate"
SHORT = "Measure a model's attention, as a profile."
HELP = """Run a few prompts densely, measure the attention of every layer and head, and write a profile.

A profile serves one model at one size and, for some methods, one step count: paro (orders and block masses),
sparse_vdit (errors and costs of five head modes), sta (windows by step, layer and head), attention_tile
(reference frames by layer), svg (head classes). It is FILE.json with FILE.safetensors beside it.

The path of the profile, or with --json what was measured and what it took, goes to stdout."""
EXAMPLES = """\b
Examples:
  dittools calibrate --weights embedded --out embedded.json
  dittools calibrate --weights embedded --method paro --method svg --steps 8 --out p.json
  dittools calibrate --prompts prompts.txt --frames 81 --height 480 --width 832 --out wan.json
  dittools generate --weights embedded --method paro --profile embedded.json

\b
--prompts: a text file with one prompt a line, or builtin (builtin:2 for the first two)."""

Flag = typer.Option


def command(
    ctx: typer.Context,
    out: Annotated[str, Flag("--out", "-o", metavar="FILE", help="The profile, a .json file.")] = "profile.json",
    method: Annotated[
        list[str] | None, Flag(help="Method to measure for; may be given several times.  [default: all]")
    ] = None,
    model: Annotated[str, Flag(help="Model family; `dittools models` lists them.")] = "wan",
    weights: Annotated[str, Flag(metavar="auto|embedded|REPO|PATH", help="As for generate.")] = "auto",
    prompts: Annotated[str, Flag(metavar="FILE|builtin[:N]", help="What to draw, one prompt a line.")] = "builtin",
    steps: Annotated[int | None, Flag(help="Denoising steps.  [default: the model's]")] = None,
    height: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    frames: Annotated[int | None, Flag(help="Frames, 4n + 1 for Wan.  [default: the model's]")] = None,
    guidance: Annotated[float | None, Flag(help="Classifier-free guidance.  [default: the model's]")] = None,
    negative_prompt: Annotated[str | None, Flag(help="What not to draw.  [default: nothing]")] = None,
    seed: Annotated[int, Flag(help="Noise of the first prompt; each next one takes the next seed.")] = 0,
    device: Annotated[str, Flag(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, Flag(help="auto, bf16, fp16 or fp32.")] = "auto",
    offload: Annotated[str, Flag(help="none, model or group: keep weights off the GPU while unused.")] = "none",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    from dittools.cli.asked import Asked
    from dittools.cli.report_asked import prompts_of

    asked = Asked(
        model=model,
        prompt=None,
        weights=weights,
        method="dense",
        sparsity=None,
        dense_steps=None,
        dense_layers=None,
        refresh=None,
        strict=False,
        cache="none",
        profile=None,
        config=None,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance=guidance,
        negative_prompt=negative_prompt,
        seed=seed,
        output="",
        compare_dense=False,
        device=device,
        dtype=dtype,
        offload=offload,
        compile=False,
    )
    asked.check_settings()
    texts, count = prompts_of(prompts)
    place = check_out(out)

    from dittools.cli.calibrate_run import check_methods, run

    methods = check_methods(method)
    sink = Output(as_json)
    record = run(asked, methods, texts, count, place, ctx.obj["command"], sink)
    sink.data(record, lambda: record["output"])


def check_out(out: str):
    """The path to write to. Raises BadInput."""
    from pathlib import Path

    from dittools.pipelines.errors import BadInput

    path = Path(out).expanduser()
    if path.suffix != ".json":
        raise BadInput(f"--out {out} must end in .json: the profile's tables go into a .safetensors file beside it")
    if not path.parent.is_dir():
        raise BadInput(f"--out {out}: there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise BadInput(f"--out {out} is a folder: name a file")
    return path
