"""`dittools generate`: a video from a prompt with most of the attention skipped, and a record of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from dittools.cli import _flags as f
from dittools.cli._command import takes, typed
from dittools.cli.output import Output
from dittools.cli.tasks.flags import Inputs, Lists

NAME = "generate"
SHORT = "Generate a video with sparse attention."
HELP = """Generate a video from a prompt with sparse attention, and write a record of the run beside it.

The path of the video, or with --json the record, goes to stdout; progress and notes go to stderr."""
EXAMPLES = """\b
Examples:
  dittools generate --model wan --sparsity 0.8 --weights embedded
  dittools generate --prompt "a cat playing piano" --compare-dense
  dittools generate --weights embedded --method svg2:iterations=2
  dittools generate --weights embedded --method dense --cache easycache
  dittools generate --weights embedded --config out.json --seed 1
  dittools generate --weights ./my-pipeline --output frames/ --json
  dittools generate --gpus 4 --prompt "a cat playing piano"

\b
Output, by the name's ending: .mp4, .gif, .webp, .mkv (lossless), .npy
(uint8 array), .png (with --frames 1), or a folder of PNG frames. The record
lies beside it: out.mp4, out.json. Both replace those of an earlier run, and
no other file unless --overwrite says so."""


@dataclass(frozen=True, kw_only=True)
class Flags(f.Settings, f.Run, Inputs, Lists):
    prompt: f.Prompt = None
    seed: f.Seed = 0
    compile: f.Compile = False
    gpus: f.Gpus = None
    parallel: f.Parallel = None
    output: f.OutputFile = "out.mp4"
    overwrite: f.Overwrite = False
    compare_dense: Annotated[
        bool,
        f.flag(
            "--compare-dense",
            "Also run densely with the same seed: PSNR, SSIM and, on a quiet machine, speed-up.",
            f.RESULT,
        ),
    ] = False


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.cli import member, ranks
    from dittools.cli.flag_checks import check_run, reads
    from dittools.cli.tasks.request import routed
    from dittools.cli.tasks.run import draw
    from dittools.pipelines import saving
    from dittools.pipelines.families import find_family

    me = member.current()  # None where this process is alone
    flags, general = routed(flags, typed(ctx))
    if general:
        draw(flags, typed(ctx), ctx.obj["command"], me)
        return
    check_run(flags)  # first what answers at once: the rest imports PyTorch
    spec = ranks.spec_of(flags, me)
    place = None
    if me is None or me.place.rank == 0:
        place = saving.plan(flags.output, 1 if find_family(flags.model).draws == "image" else flags.frames)
        place.keep(reads(flags), flags.overwrite)

    from dittools.cli.record import print_summary
    from dittools.cli.request import check
    from dittools.cli.run import run

    if spec is not None and me is not None:
        flags = ranks.on_device(flags, me)
    request = check(flags, place)
    if spec is not None:
        ranks.check_config(request.config)
    if spec is not None and me is None:
        raise typer.Exit(ranks.launch(request, spec, ctx.obj["command"]))
    output = Output.of(flags)
    together = None if spec is None else ranks.Together(spec, me, request)
    record = run(request, ctx.obj["command"], output, together)
    if record is not None:
        print_summary(record, request.output.record, output)
        output.data(record, lambda: record["output"])
