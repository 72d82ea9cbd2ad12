"""The flags of `dittools report`. A YAML plan holds them by their names too."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from dittools.cli import _flags as f
from dittools.cli.tasks.flags import Inputs

REPORT = "Report"


@dataclass(frozen=True, kw_only=True)
class Flags(f.Settings, f.Run, Inputs):
    """The flags of `report`; settings are those of what is not swept."""

    output: Annotated[str, f.flag("--output -o", "Folder of the report.", f.RESULT, "FOLDER")] = "report"
    plan: Annotated[str | None, f.flag("--plan", "YAML with the flags below; flags win over it.", REPORT, "FILE")] = (
        None
    )
    phase: Annotated[str, f.flag("--phase", "What to do.", REPORT, "run|quality|render|all")] = "all"
    prompts: Annotated[
        str,
        f.flag(
            "--prompts",
            "A text file, one prompt a line; or N of ours, 2 on a CPU, 8 on a GPU.",
            REPORT,
            "FILE|builtin[:N]",
        ),
    ] = "builtin"
    seeds: Annotated[
        list[int] | None, f.flag("--seeds", "Seeds for every prompt.  [default: 0]", REPORT, "N,N,...")
    ] = None
    sweep: Annotated[
        list[str] | None,
        f.flag(
            "--sweep",
            "Setting to vary; several make a product.  [default: --sparsity, else sparsity=0.5,0.8,0.9]",
            REPORT,
            "NAME=V,V,...",
        ),
    ] = None
    repeats: Annotated[int, f.flag("--repeats", "How often each case is timed.", REPORT, "N")] = 1
    fewer_steps: Annotated[
        int | None,
        f.flag(
            "--fewer-steps",
            "Steps of the equal-time baseline.  [default: the time of the fastest setting]",
            REPORT,
            "N",
        ),
    ] = None
    untimed: Annotated[bool, f.flag("--untimed", "Leave times out: the device does other work as well.", REPORT)] = (
        False
    )
    share: Annotated[
        str | None, f.flag("--share", "Only prompts K, K + N, ...: one part of N, for --join.", REPORT, "K/N")
    ] = None
    join: Annotated[
        list[str] | None, f.flag("--join", "Make one report of the parts in these folders.", REPORT, "FOLDER...")
    ] = None
    compile: f.Compile = False
    gpus: Annotated[
        int | None,
        f.flag("--gpus", "Draw N cases at a time, each on a GPU of its own.  [default: 1]", f.MODEL, "N"),
    ] = None


ABOUT = {"output", "phase", "join", *(field.name for field in fields(f.Common))}
"""Flags on the command itself, which say nothing of what is generated."""
PLANNED = tuple(field.name for field in fields(Flags) if field.name not in (*ABOUT, "plan", "share", "gpus"))
"""Names that a YAML plan may hold."""
