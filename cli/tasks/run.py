"""`dittools generate` by whole calls of a pipeline: one video, and its record beside it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dittools.cli import run
from dittools.cli.flag_checks import reads
from dittools.cli.member import Member
from dittools.cli.output import Output
from dittools.cli.record import print_summary
from dittools.cli.tasks.request import check
from dittools.pipelines.errors import BadInput


def draw(flags: Any, given: Collection[str], command: list[str], me: Member | None) -> None:
    """Check the flags, draw, write and tell.

    Args:
        given: names of the flags that the command line holds.
        command: the command line.
        me: this process, where others were started beside it.
    """
    if me is not None or flags.gpus not in (None, 1) or flags.parallel is not None:
        raise BadInput(
            "several GPUs share a video that is drawn from text alone, by the pipelines that run in stages: leave "
            "--gpus and --parallel out"
        )
    output = Output.of(flags)
    request = check(flags, given, reads(flags), output.note)
    record = run.run(request, command, output)
    if record is not None:
        print_summary(record, request.output.record, output)
        output.data(record, lambda: record["output"])
