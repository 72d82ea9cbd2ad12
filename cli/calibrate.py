"""`dittools calibrate`: fits what a model needs to know beforehand, into a profile."""

from __future__ import annotations

from typing import Annotated

import typer

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output

NAME = "calibrate"
SHORT = "Fit a model's profile from dense runs."
HELP = """Draw a few videos densely and fit what a model needs to know beforehand, into a JSON profile.

--cache fits the step caches for this model, scheduler, size and number of steps: TeaCache's polynomial, MagCache's
ratios, and a mask of the steps to compute. The thresholds and the mask are chosen for --computed.

The path of the profile, or with --json the profile, goes to stdout; progress goes to stderr."""
EXAMPLES = """\b
Examples:
  dittools calibrate --cache --weights embedded --out cache.json
  dittools calibrate --cache --computed 0.5 --prompts 3 --steps 30 --out wan30.json
  dittools generate --weights embedded --cache teacache:profile=cache.json"""

Flag = typer.Option


def command(
    ctx: typer.Context,
    cache: Annotated[bool, Flag("--cache", help="Fit the step caches.")] = False,
    out: Annotated[str, Flag("--out", "-o", help="JSON file of the profile.")] = "profile.json",
    computed: Annotated[float, Flag(help="Share of the steps to compute, above 0 and at most 1.")] = 0.5,
    reuse: Annotated[str, Flag(metavar="output|delta", help="What a cache carries over.")] = "output",
    prompts: Annotated[int, Flag(help="How many of the builtin prompts are drawn, one run each.")] = 1,
    model: Annotated[str, Flag(help="Model family; `dittools models` lists them.")] = "wan",
    weights: Annotated[str, Flag(metavar="auto|embedded|REPO|PATH", help="As for generate.")] = "auto",
    steps: Annotated[int | None, Flag(help="Denoising steps.  [default: the model's]")] = None,
    height: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    frames: Annotated[int | None, Flag(help="Frames, 4n + 1 for Wan.  [default: the model's]")] = None,
    guidance: Annotated[float | None, Flag(help="Classifier-free guidance.  [default: the model's]")] = None,
    seed: Annotated[int, Flag(help="Fixes the noise.")] = 0,
    device: Annotated[str, Flag(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, Flag(help="auto, bf16, fp16 or fp32.")] = "auto",
    offload: Annotated[str, Flag(help="none, model or group.")] = "none",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    from pathlib import Path

    from dittools.cli.asked import Asked
    from dittools.pipelines.errors import BadInput

    if not cache:
        raise BadInput("calibrate was not told what to fit: give --cache")
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
        cache=None,
        profile=None,
        config=None,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance=guidance,
        negative_prompt=None,
        seed=seed,
        output="",
        compare_dense=False,
        device=device,
        dtype=dtype,
        offload=offload,
        compile=False,
    )
    asked.check_settings()
    path = Path(out).expanduser()
    if path.suffix != ".json" or path.is_dir():
        raise BadInput(f"--out {out} must name a JSON file, such as profile.json")
    if not 0 < computed <= 1:
        raise BadInput(f"--computed is a share of the steps, above 0 and at most 1, got {computed:g}")
    if reuse not in ("output", "delta"):
        raise BadInput(f"--reuse must be output or delta, got {reuse!r}")
    if prompts < 1:
        raise BadInput(f"--prompts must be at least 1, got {prompts}")

    from dittools.cli.calibrate_cache import calibrate
    from dittools.cli.request import check

    sink = Output(as_json)
    found = calibrate(check(asked, None), path, computed, reuse, prompts, ctx.obj["command"], sink)
    sink.data(found, lambda: str(path))
