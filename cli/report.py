"""`dittools report`: what settings cost and give, as a page, from a run that can be stopped and gone on with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

import typer

from dittools.cli.flags import Debug, Json
from dittools.cli.output import Output

NAME = "report"
SHORT = "Measure speed and quality of settings, as a page."
HELP = """Draw prompts in many settings, measure speed and quality against dense, and make a page of it.

Beside the settings of --sweep stand yardsticks: dense; dense with another kernel (the noise floor); dense with
fewer steps, at the time of the fastest setting; dense with another seed (how far apart two equally good videos
are). A stopped report goes on where it was when the same command is given again. A case that fails is recorded, the
rest goes on, and the exit code is 1.

The path of the page, or with --json the summary, goes to stdout; progress goes to stderr."""
EXAMPLES = """\b
Examples:
  dittools report --weights embedded --out report
  dittools report --weights embedded --sweep method=svg --sweep sparsity=0.5,0.7,0.8,0.9 --out report
  dittools report --prompts prompts.txt --seeds 0 1 2 --sweep sparsity=0.7,0.8 --repeats 3 --out report
  dittools report --sweep method=dense,svg --sweep cache=none,teacache:threshold=0.1,easycache --out report
  dittools report --sweep method=svg,sparge --sweep correction=none,centroids --out report
  dittools report --plan report.yaml --out report
  dittools report --out report --phase render
  dittools report --sweep method=svg,sparge --share 2/4 --phase run --out part2     (others elsewhere)
  dittools report --join part1 part2 part3 part4 --out report

\b
A YAML plan holds flags by their names, with lists where a flag takes many:
  model: wan
  prompts: [a cat playing piano, a dog in the snow]     (or a file, or builtin)
  seeds: [0, 1]
  sweep: {method: [svg], sparsity: [0.5, 0.8]}

\b
Phases: run draws, quality measures what is drawn, render makes the page; all does the three."""

MANY = ("--seeds", "--sweep", "--join")
"""Flags that take several values after one another."""

_NEGATIVE = re.compile(r"-\.?\d.*")

Flag = typer.Option


def spread(arguments: Sequence[str]) -> list[str]:
    """``--seeds 0 1 2`` or ``--seeds=0 1 2`` as the parser reads it: ``--seeds 0 --seeds 1 --seeds 2``."""
    found: list[str] = []
    flag, values = "", 0
    for argument in arguments:
        if argument.startswith("-") and not _NEGATIVE.fullmatch(argument):
            name, equals, value = argument.partition("=")
            flag, values = name if name in MANY else "", 0
            found.append(flag or argument)
            if flag and equals:
                found.append(value)
                values = 1
        else:
            found += [flag, argument] if flag and values else [argument]
            values += 1
    return found


def command(
    ctx: typer.Context,
    out: Annotated[str, Flag("--out", "-o", help="Folder of the report.")] = "report",
    plan: Annotated[str | None, Flag(metavar="FILE", help="YAML with the flags below; flags win over it.")] = None,
    phase: Annotated[str, Flag(metavar="run|quality|render|all", help="What to do.")] = "all",
    model: Annotated[str | None, Flag(help="Model family; `dittools models` lists them.  [default: wan]")] = None,
    weights: Annotated[
        str | None, Flag(metavar="auto|embedded|REPO|PATH", help="As for generate.  [default: auto]")
    ] = None,
    prompts: Annotated[
        str | None,
        Flag(
            metavar="FILE|builtin[:N]",
            help="A text file, one prompt a line; or N of ours.  [default: builtin; 2 on a CPU, 8 on a GPU]",
        ),
    ] = None,
    seeds: Annotated[list[int] | None, Flag(help="Seeds for every prompt.  [default: 0]")] = None,
    sweep: Annotated[
        list[str] | None,
        Flag(
            metavar="NAME=V,V,...",
            help="Setting to vary; several make a product.  [default: --sparsity, else sparsity=0.5,0.8,0.9]",
        ),
    ] = None,
    repeats: Annotated[int | None, Flag(help="How often each case is timed.  [default: 1]")] = None,
    fewer_steps: Annotated[
        int | None, Flag(help="Steps of the equal-time yardstick.  [default: the time of the fastest setting]")
    ] = None,
    method: Annotated[str | None, Flag(help="Method where none is swept.  [default: auto]")] = None,
    cache: Annotated[
        str | None,
        Flag(metavar="NAME[:OPTION=VALUE...]", help="Step cache where none is swept.  [default: none]"),
    ] = None,
    correction: Annotated[
        str | None, Flag(help="What makes up for what is skipped, where none is swept.  [default: none]")
    ] = None,
    sparsity: Annotated[float | None, Flag(help="Sparsity where none is swept.  [default: 0.8]")] = None,
    steps: Annotated[
        int | None, Flag(help="Denoising steps.  [default: the model's; 8 for builtin prompts on a CPU]")
    ] = None,
    height: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    width: Annotated[int | None, Flag(help="Pixels.  [default: the model's]")] = None,
    frames: Annotated[int | None, Flag(help="Frames, 4n + 1 for Wan.  [default: the model's]")] = None,
    guidance: Annotated[float | None, Flag(help="Classifier-free guidance.  [default: the model's]")] = None,
    negative_prompt: Annotated[str | None, Flag(help="What not to draw.  [default: nothing]")] = None,
    dense_steps: Annotated[
        str | None, Flag(metavar="SHARE|COUNT", help="Dense steps at the start.  [default: 0.2]")
    ] = None,
    dense_layers: Annotated[int | None, Flag(help="First layers that stay dense.  [default: 1]")] = None,
    refresh: Annotated[int | None, Flag(help="Steps for which a choice is used.  [default: 1]")] = None,
    config: Annotated[str | None, Flag(metavar="FILE", help="JSON of a dittools.Config to start from.")] = None,
    device: Annotated[str | None, Flag(help="auto, cpu or cuda.  [default: auto]")] = None,
    dtype: Annotated[str | None, Flag(help="auto, bf16, fp16 or fp32.  [default: auto]")] = None,
    compile_: Annotated[bool, Flag("--compile", help="torch.compile the repeated blocks first.")] = False,
    offload: Annotated[str | None, Flag(help="none, model or group.  [default: none]")] = None,
    untimed: Annotated[bool, Flag("--untimed", help="Leave times out: the device does other work as well.")] = False,
    share: Annotated[
        str | None, Flag(metavar="K/N", help="Draw only prompts K, K + N, ...: one part of N, for --join.")
    ] = None,
    join: Annotated[
        list[str] | None, Flag(metavar="FOLDER...", help="Make one report of the parts in these folders.")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    from dittools.cli.report_asked import ReportAsked, check_out, check_phase

    given = dict(
        model=model,
        weights=weights,
        prompts=prompts,
        seeds=seeds,
        sweep=sweep,
        repeats=repeats,
        fewer_steps=fewer_steps,
        method=method,
        cache=cache,
        correction=correction,
        sparsity=sparsity,
        steps=steps,
        height=height,
        width=width,
        frames=frames,
        guidance=guidance,
        negative_prompt=negative_prompt,
        dense_steps=dense_steps,
        dense_layers=dense_layers,
        refresh=refresh,
        config=config,
        device=device,
        dtype=dtype,
        compile=compile_ or None,
        offload=offload,
        untimed=untimed or None,
    )
    draws = check_phase(phase, bool(join), {"share": share, "plan": plan, **given})
    folder = check_out(out, phase, bool(join))
    asked = ReportAsked.read(plan, given, share) if draws else None

    from dittools.cli.report_phases import run_phases

    run_phases(folder, phase, asked, ctx.obj["command"], Output(as_json), join or ())
