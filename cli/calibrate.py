"""`dittools calibrate`: dense runs of a few prompts, measured, as a profile for what is decided ahead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dittools import made
from dittools.cli import _flags as f
from dittools.cli._command import takes
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
  dittools calibrate --weights embedded --output embedded.json
  dittools calibrate --weights embedded --method paro,svg --output p.json
  dittools calibrate --prompts prompts.txt --steps 30 --output wan.json
  dittools generate --weights embedded --method paro --profile embedded.json
  dittools calibrate --cache --computed 0.5 --steps 30 --output wan30.json
  dittools generate --weights embedded --cache teacache:profile=cache.json

\b
--prompts: a text file with one prompt a line, or builtin (builtin:2 for the
first two)."""


FIT = "Profile"


@dataclass(frozen=True, kw_only=True)
class Flags(f.Run):
    method: Annotated[
        list[str] | None, f.flag("--method", "Methods to measure for.  [default: all]", FIT, "NAME,...")
    ] = None
    cache: Annotated[bool, f.flag("--cache", "Fit the step caches instead of the methods.", FIT)] = False
    computed: Annotated[
        float | None, f.flag("--computed", "With --cache: share of steps to compute.  [default: 0.5]", FIT, "X")
    ] = None
    reuse: Annotated[
        str | None, f.flag("--reuse", "With --cache: what is carried over.  [default: output]", FIT, "output|delta")
    ] = None
    prompts: f.Prompts = "builtin"
    seed: Annotated[int, f.flag("--seed", "Noise of the first prompt; each next one takes the next.", f.VIDEO, "N")] = 0
    output: Annotated[str, f.flag("--output -o", "The profile, a .json file.", f.RESULT, "FILE")] = "profile.json"
    overwrite: f.Overwrite = False


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.cli.flag_checks import check_run
    from dittools.cli.prompts import prompts_of

    check_run(flags)
    texts, count = prompts_of(flags.prompts)
    reads: list[places.Read] = [("--prompts", Path(flags.prompts).expanduser())]
    place = check_output(flags.output, reads, with_tables=not flags.cache, overwrite=flags.overwrite)
    output = Output.of(flags)
    if place.exists():
        output.note(f"{place} is there, and this calibration will take its place")
    if flags.cache:
        computed, reuse = _cache_settings(flags)

        from dittools.cli.calibrate_run import fit_caches

        found = fit_caches(flags, computed, reuse, (texts, count), place, ctx.obj["command"], output)
        return output.data(found, lambda: str(place))
    for name in ("computed", "reuse"):
        if getattr(flags, name) is not None:
            raise BadInput(f"--{name} is for fitting the step caches: add --cache")

    from dittools.cli.calibrate_run import check_methods, run

    record = run(flags, check_methods(flags.method), (texts, count), place, ctx.obj["command"], output)
    output.data(record, lambda: record["output"])


def _cache_settings(flags: Flags) -> tuple[float, str]:
    """Share of computed steps, and what is carried over. Raises BadInput."""
    if flags.method:
        raise BadInput(f"--method {flags.method[0]} is for calibrating methods: drop it, or drop --cache")
    computed, reuse = 0.5 if flags.computed is None else flags.computed, flags.reuse or "output"
    if not 0 < computed <= 1:
        raise BadInput(f"--computed is a share of the steps, above 0 and at most 1, got {computed:g}")
    if reuse not in ("output", "delta"):
        raise BadInput(f"--reuse must be output or delta, got {reuse!r}")
    return computed, reuse


def check_output(
    out: str, reads: Sequence[places.Read], *, with_tables: bool, overwrite: bool, kind: str = "profile"
) -> Path:
    """The path to write to. Raises BadInput, also where a file would be lost that is none of this kind.

    Args:
        kind: "profile" or "plans", as `dittools.made` knows them.
    """
    path = places.path_of("--output", out, f"{kind}.json")
    one, verb = ("a profile", "calibrate") if kind == "profile" else ("plans", "export")
    if path.suffix != ".json":
        raise BadInput(
            f"--output {places.shown(out)} must end in .json: the tables of {one} go into a .safetensors file beside it"
        )
    tables = path.with_suffix(".safetensors")
    targets = (path, tables) if with_tables else (path,)
    for target in targets:
        places.writable(target, "--output")
        if target.is_dir():
            raise BadInput(f"--output {places.shown(out)} would replace the folder {target}: name another file")
    places.apart(targets, reads, "--output")
    known = made.KINDS[kind]
    places.keep(path, "--output", lambda: known(path) is not None, f"{one} of dittools {verb}", overwrite)
    if with_tables:
        what = f"the tables of {one} {path.name} beside it"
        places.keep(tables, "--output", lambda: made.tables(tables, path, kind), what, overwrite)
    return path
