"""Which cases a report still needs the frames of: they may be removed once everything is measured of them."""

from __future__ import annotations

from collections.abc import Iterator

from dittools.report.folder import Folder
from dittools.report.plan import DENSE, Case, Decided, Plan, Row, case_of, settings


def unmeasured(folder: Folder, row: Row) -> bool:
    """Whether a row was not compared with its reference yet; dense is never compared."""
    return row.case.id != row.reference.id and folder.scores(row.case.id, row.reference.id) is None


def lacking(folder: Folder, plan: Plan, decided: Decided, case: Case) -> bool:
    """Whether the frames of a drawn case are gone, or empty, and something must still be measured with them."""
    if folder.has_frames(case.id):
        return False
    return folder.judged(case.id) is None or any(
        unmeasured(folder, row) for row in _rows(plan, decided, case) if folder.done(row.case.id)
    )


def _rows(plan: Plan, decided: Decided, case: Case) -> Iterator[Row]:
    """The rows that a case is in, as what is compared or as what others are compared with."""
    found = settings(plan, decided)
    dense = next(setting for setting in found if setting.kind == DENSE)
    for setting in found:
        for seed in plan.seeds:
            row = Row(setting, case.prompt, seed, *(case_of(plan, s, case.prompt, seed) for s in (setting, dense)))
            if case.id in (row.case.id, row.reference.id):
                yield row
