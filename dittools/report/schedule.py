"""In which order a report draws, so that a drifting clock hits all settings alike, and when it will be done."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from dittools.report.plan import Case, Decided, Plan, Setting, case_of, settings


class Unit(NamedTuple):
    """One thing to do: draw a case for the first time (repeat 0), or time it again."""

    case: Case
    repeat: int


def units(plan: Plan, decided: Callable[[], Decided], prompts: Collection[int] | None = None) -> Iterator[Unit]:
    """Everything to draw, in order, each unit once; of these prompts (by number) only, where they are given.

    All settings of a prompt and seed follow each other; every other such group runs backwards, so that a slow
    drift evens out. `decided` is asked again as the report goes on: a baseline that becomes known joins in, and
    catches up on the groups that are over.
    """
    told: set[tuple[str, int]] = set()
    mine = range(len(plan.prompts)) if prompts is None else sorted(prompts)
    groups = [(prompt, seed) for prompt in mine for seed in plan.seeds]

    def fresh(setting: Setting, prompt: int, seed: int, repeat: int) -> Iterator[Unit]:
        case = case_of(plan, setting, prompt, seed)
        if (case.id, repeat) not in told:
            told.add((case.id, repeat))
            yield Unit(case, repeat)

    for repeat in range(plan.repeats):
        for number, (prompt, seed) in enumerate(groups):
            found = settings(plan, decided())
            for setting in reversed(found) if number % 2 else found:
                yield from fresh(setting, prompt, seed, repeat)
            for setting in settings(plan, decided()):  # also what this group's times have decided
                yield from fresh(setting, prompt, seed, repeat)
    for repeat in range(plan.repeats):
        for prompt, seed in groups:
            for setting in settings(plan, decided()):
                yield from fresh(setting, prompt, seed, repeat)


def count(plan: Plan, decided: Decided, prompts: Collection[int] | None = None) -> int:
    """How many units there are; a baseline not yet decided is counted too."""
    return len(list(units(plan, lambda: _foreseen(plan, decided), prompts)))


def _foreseen(plan: Plan, decided: Decided) -> Decided:
    if decided.fewer_steps is None and plan.steps > 1 and plan.timed:
        return decided._replace(fewer_steps=plan.steps - 1)
    return decided


class Estimate:
    """How long the rest will take, from what was seen: a setting's own mean, else that of all."""

    def __init__(self, left: int):
        self.left = left
        self._seconds: dict[tuple[str, bool], list[float]] = {}

    def done(self, unit: Unit, seconds: float | None) -> None:
        """A unit is over; None where it was there already or failed."""
        self.left -= 1
        if seconds is not None:
            self._seconds.setdefault((unit.case.setting.key, unit.repeat > 0), []).append(seconds)

    def seconds(self) -> float | None:
        """Seconds left, or None before anything was seen."""
        means = [statistics.fmean(values) for values in self._seconds.values()]
        return statistics.fmean(means) * self.left if means else None


def spoken(seconds: float) -> str:
    """For people: "40 s", "6 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
