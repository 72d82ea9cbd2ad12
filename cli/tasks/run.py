"""`dittools generate` by whole calls of a pipeline: one video or a list of them, and a record beside each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dittools.cli import run
from dittools.cli.flag_checks import reads
from dittools.cli.member import Member
from dittools.cli.output import Output
from dittools.cli.record import print_summary
from dittools.cli.request import read_by
from dittools.cli.tasks.batch import draw_all, lists
from dittools.cli.tasks.request import check, files_of
from dittools.pipelines.errors import BadInput
from dittools.pipelines.weights import EMBEDDED


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
    several = lists(flags, given, flags.weights == EMBEDDED)
    request = check(flags, given, reads(flags), output.note, several is not None)
    if several is not None:
        read = [*reads(flags), *files_of(flags), *read_by(request.config)]
        records = draw_all(request, several, read, command, output)
        output.data({"videos": records}, lambda: "\n".join(record["output"] for record in records))
        return
    record = run.run(request, command, output)
    if record is not None:
        print_summary(record, request.output.record, output)
        output.data(record, lambda: record["output"])
