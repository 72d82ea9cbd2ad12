"""`dittools calibrate`: dense runs of a few prompts, measured, as a profile for what is decided ahead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dittools import made
from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output
from dittools.pipelines import places
from dittools.pipelines.errors import BadInput

NAME = "calibrate"
SHORT = "Measure a model in dense runs, as a profile."
HELP = """Run a few prompts densely, measure the attention of every layer and head, and write a profile.

A profile serves one model at one size and, for some methods, one step count: paro (orders and block masses),
sparse_vdit (errors and costs of five head modes), sta (windows by step, layer and head), attention_tile
(reference frames by layer), svg (head classes). It is FILE.json with FILE.safetensors beside it.

Most is found on a sample of query rows in 3 to 8 steps spread over the run; which, the profile says (measured_steps).
Only paro's masses are of every step and row, at about one dense attention a call, in a second round over all prompts.
Beside the model this takes up to 1 GB of the GPU and, where the masses of all layers are more than 512 MB, host memory:
9 GB for 40 layers of 40 heads at 75,600 tokens.

With --cache it is the step caches that are fitted, for this model, scheduler, size and number of steps: TeaCache's
polynomial, MagCache's ratios, and a mask of the steps to compute, chosen for --computed. It is FILE.json alone.

The path of the profile, or with --json what was measured and what it took, goes to stdout."""
EXAMPLES = """\b
Examples:
  dittools calibrate --weights embedded --out embedded.json
  dittools calibrate --weights embedded --method paro --method svg --steps 8 --out p.json
  dittools calibrate --prompts prompts.txt --frames 81 --height 480 --width 832 --out wan.json
  dittools generate --weights embedded --method paro --profile embedded.json
  dittools calibrate --cache --computed 0.5 --prompts builtin:3 --steps 30 --out wan30.json
  dittools generate --weights embedded --cache teacache:profile=cache.json

\b
--prompts: a text file with one prompt a line, or builtin (builtin:2 for the first two)."""

Flag = typer.Option


def command(
    ctx: typer.Context,
    cache: Annotated[bool, Flag("--cache", help="Fit the step caches instead of the methods.")] = False,
    computed: Annotated[
        float | None, Flag(help="With --cache: share of the steps to compute, above 0 and at most 1.  [default: 0.5]")
    ] = None,
    reuse: Annotated[
        str | None, Flag(metavar="output|delta", help="With --cache: what a cache carries over.  [default: output]")
    ] = None,
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
    overwrite: Annotated[bool, Flag("--overwrite", help="Also replace files that are no profile.")] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    from dittools.cli.asked import Asked
    from dittools.cli.report_asked import prompts_of

    asked = Asked(
        model=model,
        weights=weights,
        method="dense",
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance=guidance,
        negative_prompt=negative_prompt,
        seed=seed,
        device=device,
        dtype=dtype,
        offload=offload,
    )
    asked.check_settings()
    texts, count = prompts_of(prompts)
    place = check_out(out, prompts, with_tables=not cache, overwrite=overwrite)
    sink = Output(as_json)
    if place.exists():
        sink.note(f"{place} is there, and this calibration will take its place")
    if cache:
        fit = _cache_settings(method, computed, reuse)

        from dittools.cli.calibrate_cache import calibrate
        from dittools.cli.request import check

        found = calibrate(check(asked, None), place, *fit, texts, count or 1, ctx.obj["command"], sink)
        return sink.data(found, lambda: str(place))
    for flag, value in (("--computed", computed), ("--reuse", reuse)):
        if value is not None:
            raise BadInput(f"{flag} is for fitting the step caches: add --cache")

    from dittools.cli.calibrate_run import check_methods, run

    methods = check_methods(method)
    record = run(asked, methods, texts, count, place, ctx.obj["command"], sink)
    sink.data(record, lambda: record["output"])


def _cache_settings(method: list[str] | None, computed: float | None, reuse: str | None) -> tuple[float, str]:
    """Share of computed steps, and what is carried over. Raises BadInput."""
    if method:
        raise BadInput(f"--method {method[0]} is for calibrating methods: drop it, or drop --cache")
    computed, reuse = 0.5 if computed is None else computed, reuse or "output"
    if not 0 < computed <= 1:
        raise BadInput(f"--computed is a share of the steps, above 0 and at most 1, got {computed:g}")
    if reuse not in ("output", "delta"):
        raise BadInput(f"--reuse must be output or delta, got {reuse!r}")
    return computed, reuse


def check_out(out: str, prompts: str, *, with_tables: bool, overwrite: bool) -> Path:
    """The path to write to. Raises BadInput, also where a file would be lost that is no profile."""
    path = places.path_of("--out", out, "profile.json")
    if path.suffix != ".json":
        raise BadInput(
            f"--out {places.shown(out)} must end in .json: the profile's tables go into a .safetensors file beside it"
        )
    tables = path.with_suffix(".safetensors")
    targets = (path, tables) if with_tables else (path,)
    for target in targets:
        places.writable(target, "--out")
        if target.is_dir():
            raise BadInput(f"--out {places.shown(out)} would replace the folder {target}: name another file")
    places.apart(targets, [("--prompts", Path(prompts).expanduser())], "--out")
    places.keep(path, "--out", lambda: made.profile(path) is not None, "a profile of dittools calibrate", overwrite)
    if with_tables:
        what = f"the tables of a profile {path.name} beside it"
        places.keep(tables, "--out", lambda: made.tables(tables, path), what, overwrite)
    return path
