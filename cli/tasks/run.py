"""`dittools generate` by whole calls of a pipeline: one video or a list of them, and a record beside each."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import typer

from dittools.cli import ranks, run
from dittools.cli.flag_checks import reads
from dittools.cli.member import Member
from dittools.cli.output import Output
from dittools.cli.record import print_summary
from dittools.cli.request import Request, read_by
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

    Raises:
        typer.Exit: with the code of the ranks that were started to draw it together.
    """
    spec = ranks.spec_of(flags, me, general=True)
    several = lists(flags, given, flags.weights == EMBEDDED)
    if several is not None and (spec is not None or me is not None):
        raise BadInput(
            "several GPUs share one video: draw a list on one, or a part of it on each, without --gpus and --parallel"
        )
    if spec is not None and me is not None:
        flags = ranks.on_device(flags, me)
    output, follows = Output.of(flags), me is not None and me.place.rank > 0
    # The file is the first rank's: what is there already is its to refuse, and what it makes is in nobody's way.
    request = check(flags, given, reads(flags), output.note, several is not None or follows)
    if spec is not None:
        ranks.check_config(request.config)
        ranks.check_family(spec, request)
        if me is None:
            raise typer.Exit(ranks.launch(request, spec, command))
        record = run.run(request, command, output, ranks.Together(spec, me, request))
        _tell(record, request, output)
        return
    if several is not None:
        read = [*reads(flags), *files_of(flags), *read_by(request.config)]
        records = draw_all(request, several, read, command, output)
        output.data({"videos": records}, lambda: "\n".join(record["output"] for record in records))
        return
    _tell(run.run(request, command, output), request, output)


def _tell(record: dict[str, Any] | None, request: Request, output: Output) -> None:
    if record is not None:
        print_summary(record, request.output.record, output)
        output.data(record, lambda: record["output"])
