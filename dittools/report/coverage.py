"""A report of which not all is drawn: what can be compared on the same prompts and seeds, what is missing, and which
frames are still needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from dittools.report.folder import Folder
from dittools.report.plan import DENSE, SEED, Case, Decided, Plan, Row, case_of, settings

if TYPE_CHECKING:
    from dittools.report.results import Line, Results

MANY = 6  # settings that a note names

Pair = tuple[int, int]
"""A prompt, by number, and a seed."""


def common(found: Iterable[frozenset[Pair]]) -> frozenset[Pair]:
    """The pairs to compare settings on: as many settings on as many pairs as there are.

    Args:
        found: of each setting, the pairs that it can be compared with dense on. Settings that lack a pair of the
            result are left out of the comparison.
    """
    sets = [pairs for pairs in found if pairs]
    if not sets:
        return frozenset()
    choices = {*sets, *(a & b for a, b in itertools.combinations(set(sets), 2)), frozenset.intersection(*sets)}

    def worth(pairs: frozenset[Pair]) -> tuple[int, int, list[Pair]]:
        settings = sum(pairs <= other for other in sets)
        return settings * len(pairs), settings, sorted((-prompt, -seed) for prompt, seed in pairs)

    return max(choices, key=worth)


def notes(results: Results, joined: bool = False) -> list[str]:
    """What is missing of what was asked for, each said once; nothing where all of it is there.

    joined: whether the report was made of parts just now.
    """
    said = []
    missing = _undrawn(results)
    if missing:
        what = "no part drew {}: give its part to --join as well" if joined else "nothing was drawn of {}"
        said.append(what.format("; ".join(missing)))
    said += _counted(results.lines, "drawn for {} of {} pairs of prompt and seed", lambda line: line.drawn)
    measured = [line for line in results.lines if line.measured is not None]
    if any(line.measured for line in measured):
        fewer = [line for line in measured if line.measured < line.drawn]
        said += _counted(fewer, "measured for {} of {} pairs of prompt and seed", lambda line: line.measured)
    if results.plan.timed:
        often = f"not every case was timed {results.plan.repeats} times: "
        short = [line for line in results.lines if line.drawn and line.timed < results.plan.repeats]
        said += [often + _names(short)] if short else []
        if results.plan.steps > 1 and results.decided.fewer_steps is None:
            said.append("the equal-time baseline was not drawn: no pair was drawn in every setting under test")
    if results.pairs and len(results.pairs) < results.asked:
        said.append(
            f"what is compared is compared over {len(results.pairs)} of {results.asked} pairs of prompt and seed, "
            "the same for every setting; quality.csv has all that is known"
        )
    apart = [line for line in results.lines if line.drawn and not line.compared]
    if apart and results.pairs:
        said.append(f"not compared, for want of the pairs that the others have: {_names(apart)}")
    return said


def _counted(lines: Sequence[Line], text: str, count: Callable[[Line], int]) -> list[str]:
    """One note for the settings of which equally little is there."""
    few = [line for line in lines if count(line) < line.asked]
    return [
        f"{text.format(number, few[0].asked)}: {_names([line for line in few if count(line) == number])}"
        for number in sorted({count(line) for line in few})
    ]


def _names(lines: Sequence[Line]) -> str:
    """Names of settings, of many the first."""
    names = [line.setting.name for line in lines[:MANY]]
    return "; ".join(names) + (f"; and {len(lines) - MANY} more" if len(lines) > MANY else "")


def _undrawn(results: Results) -> list[str]:
    """Prompts, or seeds of a prompt, of which there is no case at all."""
    drawn = set(results.drawn)
    found = []
    for prompt in range(len(results.plan.prompts)):
        seeds = [seed for seed in results.plan.seeds if (prompt, seed) not in drawn]
        if len(seeds) == len(results.plan.seeds):
            found.append(f"prompt {prompt + 1}")
        elif seeds:
            found.append(f"prompt {prompt + 1}, seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}")
    return found


def drawn(lines: Iterable[Line]) -> list[Pair]:
    """The pairs of which there is a case; another seed's video may be there for that seed's own sake."""
    rows = (o.row for line in lines if line.setting.kind != SEED for o in line.outcomes if o.record is not None)
    return sorted({(row.prompt, row.seed) for row in rows})


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
