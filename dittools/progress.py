"""Tells listeners when a denoising step is done, though a transformer forward is only part of one."""

from __future__ import annotations

from collections.abc import Callable

from dittools.run import Run

OnStep = Callable[[int, int, "float | None", "float | None"], None]


class StepReports:
    """Follows the transformer calls of one run and reports each step once.

    A step is over when the next begins, or as soon as it has had as many calls as an earlier step: so the first step
    is reported when the second begins, and every later one at its own end.
    """

    def __init__(self, run: Run, listeners: list[OnStep]):
        self._run = run
        self._listeners = listeners
        self._step, self._calls = -1, 0
        self._calls_a_step = 0
        self._reported = -1

    def begin_call(self, step: int) -> None:
        """A transformer forward of this step starts."""
        if step != self._step:
            self._calls_a_step = max(self._calls_a_step, self._calls)
            self._report(self._step)
            self._step, self._calls = step, 0
        self._calls += 1

    def end_call(self) -> None:
        """That forward is over."""
        if self._calls >= self._calls_a_step > 0:
            self._report(self._step)

    def _report(self, step: int) -> None:
        if not self._listeners or step <= self._reported:
            return
        self._reported = step
        seconds = [watch.seconds for at, watch in self._run.forwards if at == step]
        skipped = self._run.skipped([call for call in self._run.calls if call.step == step])
        for listener in list(self._listeners):
            listener(step, self._run.steps, skipped, sum(s for s in seconds if s is not None))
