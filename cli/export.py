"""`dittools export`: what a run decided, as a file that another run goes by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dittools.cli import _flags as f
from dittools.cli._command import takes
from dittools.cli.output import Output
from dittools.config import Config
from dittools.pipelines.errors import BadInput

NAME = "export"
SHORT = "Draw once and write what the run decided."
HELP = """Draw with sparse attention and write what the run decided: masks in bits, token orders, and the steps that a
cache computed, by layer, group of steps and guidance branch. Plans that are equal are kept once.

`generate --plans FILE` goes by them and decides nothing. With the same prompt, seed, settings and kind of device it
draws the same to the bit; other prompts and seeds take the same plans. They fit one model at one size and number of
steps, and other files are refused. They are FILE.json with FILE.safetensors beside it.

The path of the JSON, or with --json what was written, goes to stdout. No video is written: `generate` with the same
settings draws it."""
EXAMPLES = """\b
Examples:
  dittools export --weights embedded --method svg --output plans.json
  dittools generate --weights embedded --plans plans.json --seed 7
  dittools export --method svg2 --refresh 5 --output wan.json
  dittools export --config out.json --output plans.json"""


@dataclass(frozen=True, kw_only=True)
class Flags(f.Settings, f.Run):
    prompt: f.Prompt = None
    seed: f.Seed = 0
    compile: f.Compile = False
    output: Annotated[str, f.flag("--output -o", "The plans, a .json file.", f.RESULT, "FILE")] = "plans.json"
    overwrite: f.Overwrite = False


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.cli.calibrate import check_output
    from dittools.cli.flag_checks import check_run, reads

    check_run(flags)
    place = check_output(flags.output, reads(flags), with_tables=True, overwrite=flags.overwrite, kind="plans")
    output = Output.of(flags)

    from dittools.cli.export_run import run
    from dittools.cli.request import check

    request = check(flags, None, _check_sparse)
    if place.exists():
        output.note(f"{place} is there, and these plans will take its place")
    record = run(request, place, ctx.obj["command"], output)
    output.data(record, lambda: record["output"])


def _check_sparse(config: Config) -> None:
    if config.method == "dense" and config.cache == "none":
        raise BadInput("--method dense without a cache decides nothing to export: use a method, or a --cache")
