"""Which run a call belongs to, where several loops call the same transformer in turn."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch

from dittools.clock import StepClock
from dittools.progress import OnStep, StepReports
from dittools.run import Run


class UnderWay(NamedTuple):
    """A run that is not over: what belongs to it beside itself."""

    clock: StepClock
    run: Run
    reports: StepReports
    life: weakref.ref | None
    source: int | None


class RunsUnderWay:
    """The present run, and one that is set aside while another loop makes calls.

    Args:
        new_clock: makes the clock of a run.

    Attributes:
        clock: tells the steps of the present run.
        run: the present or latest run; None before the first.
        reports: follows its steps.
    """

    def __init__(self, new_clock: Callable[[], StepClock]):
        self.clock = new_clock()
        self.run: Run | None = None
        self.reports: StepReports | None = None
        self._new_clock = new_clock
        self._aside: UnderWay | None = None
        self._life: weakref.ref | None = None  # of the loop of the present run
        self._source: int | None = None  # of its schedule

    def begin(self, run: Run, listeners: list[OnStep], life: weakref.ref | None, source: int | None) -> None:
        """A run starts. ``life`` and ``source``: as in `dittools.call_info.CallInfo`."""
        self.run, self.reports = run, StepReports(run, listeners)
        self._life = None if life is None else weakref.ref(life(), _ender(run))
        self._source = source

    def turn_to(self, timesteps: torch.Tensor | None, source: int | None) -> None:
        """Let the run with this schedule be the present one; one whose loop goes on meanwhile is set aside."""
        run = self.run
        if run is not None and run.steps - run.first == 1 and self.clock.over and not _lives(self._life):
            self.clock.reset()  # in a schedule of one step, nothing but the end of its loop tells two runs apart
        present = self._under_way(source) if not self.clock.runs_on(timesteps) else None
        other = self._aside
        if other is not None and (other.clock.over or not _lives(other.life)):
            other.run.let_go()
            self._aside = other = None
        if self.clock.runs_on(timesteps):
            return
        if other is not None and other.clock.runs_on(timesteps):
            self.clock, self.run, self.reports, self._life, self._source = other
            self._aside = present
        elif present is not None:
            if other is not None:
                other.run.let_go()
            self._aside = present
            self.clock, self.run = self._new_clock(), None

    def close(self) -> None:
        """Let go of what runs hold; the counters stay."""
        for run in (self.run, self._aside.run if self._aside else None):
            if run is not None:
                run.let_go()
        self._aside = None

    def _under_way(self, source: int | None) -> UnderWay | None:
        """The present run, where it may go on after a call from elsewhere."""
        if self.run is None or self.clock.schedule is None or self.clock.over or not _lives(self._life):
            return None
        if source is not None and source == self._source:
            return None
        return UnderWay(self.clock, self.run, self.reports, self._life, self._source)


def _lives(life: weakref.ref | None) -> bool:
    """Whether a loop goes on; one of which that is not known may."""
    return life is None or life() is not None


def _ender(run: Run) -> Callable[[object], None]:
    """What ends a run when the caller that has its loop is gone."""
    reference = weakref.ref(run)

    def end(_: object) -> None:
        ended = reference()
        if ended is not None:
            ended.over = True
            ended.let_go()

    return end
