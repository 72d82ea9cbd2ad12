"""`dittools report`: what settings cost and give, as a page, from a run that can be stopped and gone on with."""

from __future__ import annotations

import typer

from dittools.cli._command import takes, typed
from dittools.cli.output import Output
from dittools.cli.report.flags import Flags

NAME = "report"
SHORT = "Measure speed and quality of settings, as a page."
HELP = """Generate videos of prompts in many settings, measure speed and quality against dense, and make a page of it.

Beside the settings of --sweep stand baselines: dense; dense with another kernel (the noise floor); dense with
fewer steps, at the time of the fastest setting; dense with another seed (how far apart two equally good videos
are). A stopped report goes on where it was when the same command is given again. A case that fails is recorded, the
rest goes on, and the exit code is 1.

The path of the page, or with --json the summary, goes to stdout; progress goes to stderr."""
EXAMPLES = """\b
Examples:
  dittools report --weights embedded --output report
  dittools report --weights embedded --sweep method=svg sparsity=0.7,0.9
  dittools report --prompts prompts.txt --seeds 0,1,2 --repeats 3
  dittools report --sweep method=dense,svg --sweep cache=none,easycache
  dittools report --sweep method=svg,sparge correction=none,centroids
  dittools report --weights ./wan-i2v --image dog.png --prompts prompts.txt
  dittools report --plan report.yaml --output report
  dittools report --output report --phase render
  dittools report --prompts prompts.txt --sweep method=svg --gpus 4
  dittools report --sweep method=svg --share 2/4 --phase run --output part2
  dittools report --join part1 part2 part3 part4 --output report

\b
A YAML plan holds flags by their names, with lists where a flag takes many:
  model: wan
  prompts: [a cat playing piano, a dog in the snow]
  seeds: [0, 1]
  sweep: {method: [svg], sparsity: [0.5, 0.8]}

\b
Phases: run generates, quality measures what is there, render makes the page;
all does the three."""


@takes(Flags)
def command(ctx: typer.Context, flags: Flags) -> None:
    from dittools.cli.report.request import ReportRequest, check_output, check_phase

    given = typed(ctx)
    generates = check_phase(flags.phase, bool(flags.join), given)
    folder = check_output(flags.output, flags.phase, bool(flags.join))
    request = ReportRequest.read(flags, given) if generates else None

    from dittools.cli.report.phases import run_phases

    run_phases(folder, flags.phase, request, ctx.obj["command"], Output.of(flags), flags.join or ())
