"""Which step of which run a call belongs to: read from the schedule that runs, never from what is nearest."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from dittools.json_numbers import whole_steps
from dittools.timesteps import Reading, on_host, place_in, read, shares_memory


@dataclass(frozen=True)
class StepInfo:
    """Where one call stands.

    Attributes:
        new_run: whether it starts a run.
        step: index in the schedule, of ``steps``.
        steps: one more than the last step that runs.
        branch: guidance lane.
        dense: whether attention stays dense in this step.
        first: first step that runs: a pipeline may enter its schedule late.
        known: whether ``step`` is this call's. Where it is not, it is that of the call before.
        counted: whether no schedule is in sight, so that steps are counted as they come and nobody knows how many
            will.
    """

    new_run: bool
    step: int
    steps: int
    branch: str
    dense: bool
    first: int = 0
    known: bool = True
    counted: bool = False


class StepClock:
    """Told of every transformer call; knows when a run starts, and the step of each call.

    A run starts with another schedule (every pipeline call makes one) or with a step that lies before the last one of
    the same branch. Where there is no schedule, a timestep that goes back or another signature (token grid, dtype,
    device) starts one. The schedule goes to the CPU at most once a run.

    Args:
        dense_steps, dense_last_steps: as in `dittools.Config`.

    Attributes:
        schedule: of the present run; None where there is none.
        strange: the latest timestep that is in no step of it.
    """

    def __init__(self, dense_steps: float | int = 0, dense_last_steps: float | int = 0):
        self.dense_steps = dense_steps
        self.dense_last_steps = dense_last_steps
        self.reset()

    def reset(self) -> None:
        """Forget the run: the next call starts one."""
        self.schedule: torch.Tensor | None = None
        self.strange = 0.0
        self._host: tuple[torch.Tensor, list[float]] | None = None
        self._signature: Hashable = None
        self._start(None)
        self._running = False

    @property
    def over(self) -> bool:
        """Whether the last step of the present run has been called, or none is under way."""
        return not self._running or (not self._counted and self._step >= self._total - 1)

    def runs_on(self, timesteps: torch.Tensor | None) -> bool:
        """Whether this is the schedule of the present run."""
        if timesteps is None or self.schedule is None:
            return self._running and timesteps is self.schedule
        return self._running and shares_memory(self.schedule, timesteps)

    def observe(
        self,
        timestep: torch.Tensor | float | Callable[[], Reading],
        timesteps: torch.Tensor | None,
        *,
        branch: str | None = None,
        signature: Hashable = None,
        step_index: int | None = None,
        steps: int | None = None,
        first: int | None = None,
    ) -> StepInfo:
        """Note one transformer call.

        Args:
            timestep: what the transformer is given, or what reads it in the schedule's units. Read only when its place
                in the schedule is not known otherwise.
            timesteps: the schedule ``[steps]``, the very tensor, or ``[steps, frames]`` with one timestep a frame.
                None when there is none.
            branch: name of the guidance lane. None: calls within a step are told apart by their order.
            signature: what a run without a schedule is known by.
            step_index: index in the schedule where the caller knows it.
            steps: one more than the last step that runs; the schedule's length by default.
            first: first step that runs, where the caller knows it; that of the run's first call by default.
        """
        index, reading = step_index, None
        if index is None and not callable(timestep):
            index = place_in(timestep, timesteps)
        if index is None:
            reading = timestep() if callable(timestep) else read(timestep)
            if timesteps is not None and not self._matches(reading, timesteps):
                if self.runs_on(timesteps) and not self.over:
                    return self._beside(reading, branch)
                timesteps = None
        new = not self.runs_on(timesteps)
        changed = not new and signature != self._signature
        if reading is not None and timesteps is None:
            return self._count(reading, branch, signature, new, changed)
        if new:
            self._start(timesteps)
        if index is None:
            index = self._find(reading, branch)
        if index is None:
            return self._beside(reading, branch)
        again = changed and index == self._step and (branch is None or branch in self._seen)
        if not new and (self._goes_back(index, branch) or again):
            new = True
            self._start(timesteps)
            index = index if reading is None else self._find(reading, branch)
        if new:
            self._first = index if first is None else min(first, index)
        self._signature = signature
        length = len(timesteps) if timesteps is not None else index + 1
        self._total = max(steps or length, index + 1)
        self._counted = timesteps is None and steps is None
        name = self._note(index, branch, reading)
        dense = self._dense_counted(index) if self._counted else self.dense(index, self._total, self._first)
        return StepInfo(new, index, self._total, name, dense, self._first, counted=self._counted)

    def dense(self, step: int, steps: int, first: int = 0) -> bool:
        """Whether this step is one of the dense ones of a run from ``first`` to before ``steps``."""
        runs = steps - first
        return (
            not first + whole_steps(self.dense_steps, runs) <= step < steps - whole_steps(self.dense_last_steps, runs)
        )

    def needs_all_steps(self) -> bool:
        """Whether the dense steps asked for cannot be told in a run of which nobody knows how many steps it has."""
        return self.dense_last_steps > 0 or (not isinstance(self.dense_steps, int) and self.dense_steps > 0)

    def timesteps(self, steps: int) -> tuple[float, ...]:
        """The timesteps of the first ``steps`` steps of the schedule; empty where they are not known.

        Of one timestep a frame the largest counts.
        """
        known = self._values(self.schedule)
        return tuple(known[:steps]) if len(known) >= steps else ()

    def _dense_counted(self, step: int) -> bool:
        return self.needs_all_steps() or step < self.dense_steps

    def _start(self, timesteps: torch.Tensor | None) -> None:
        self.schedule = timesteps
        self._running = True
        self._step = -1
        self._first = self._total = 0
        self._counted = timesteps is None
        self._reading: Reading | None = None  # of the present step
        self._before: list[Reading] = []  # of earlier steps, where no schedule tells them
        self._calls = 0  # so far in this step
        self._calls_a_step = 0  # most that an earlier step had
        self._seen: set[str] = set()  # branches called in this step
        self._last: dict[str, int] = {}  # last step of each branch

    def _values(self, timesteps: torch.Tensor | None) -> list[float]:
        """A schedule on the host; that of the latest one that was asked for is kept."""
        if timesteps is None:
            return []
        if self._host is None or self._host[0] is not timesteps:
            self._host = timesteps, on_host(timesteps)
        return self._host[1]

    def _matches(self, reading: Reading, timesteps: torch.Tensor | None) -> list[int]:
        """The steps of a schedule whose timestep may be the one that was read."""
        return reading.steps_among(self._values(timesteps))

    def _beside(self, reading: Reading, branch: str | None) -> StepInfo:
        """A call in the middle of a run whose step cannot be told."""
        self.strange = reading.value
        return StepInfo(False, self._step, self._total, branch or "", True, self._first, known=False)

    def _note(self, step: int, branch: str | None, reading: Reading | None) -> str:
        if step != self._step:
            self._calls_a_step = max(self._calls_a_step, self._calls)
            self._step, self._calls, self._seen = step, 0, set()
        self._reading = reading
        name = f"call{self._calls}" if branch is None else branch
        self._calls += 1
        self._seen.add(name)
        self._last[name] = step
        return name

    def _goes_back(self, step: int, branch: str | None) -> bool:
        return step < (self._step if branch is None else self._last.get(branch, step))

    def _find(self, reading: Reading, branch: str | None) -> int | None:
        """Index of a timestep in the schedule; among those that round to it, the one whose turn it is."""
        indices = self._matches(reading, self.schedule)
        later = [i for i in indices if i > self._step]
        before = self._reading
        if before is not None and before.value == reading.value and self._step in indices:
            # Of one timestep a token, others moved: the largest does not tell the step.
            if before.all != reading.all and branch in self._seen:
                return None
            # Second-order schedulers list a timestep twice, and rounding makes neighbours alike: the step is over once
            # its branches have all been called.
            over = branch in self._seen if branch is not None else 0 < self._calls_a_step <= self._calls
            return later[0] if later and over else self._step
        if self._step in indices and before is None:
            return self._step  # it was told, and this call is of the same timestep
        return later[0] if later else (indices[0] if indices else None)

    def _count(self, reading: Reading, branch: str | None, signature: Hashable, new: bool, changed: bool) -> StepInfo:
        """The step of a call without a schedule: a timestep that differs is the next step."""
        moved = not new and self._reading is not None and reading.all != self._reading.all
        if moved:
            earlier = [*self._before, self._reading]
            turns = len(earlier) > 1 and (earlier[-2].value < earlier[-1].value) != (earlier[-1].value < reading.value)
            back = turns or any(reading.all == one.all for one in self._before)
            new, moved = back, not back
        if new or changed:
            new, moved = True, False
            self._start(None)
        elif moved:
            self._before.append(self._reading)
        self._signature = signature
        step = self._step + 1 if moved or new else max(self._step, 0)
        self._total, self._counted = step + 1, True
        name = self._note(step, branch, reading)
        return StepInfo(new, step, self._total, name, self._dense_counted(step), counted=True)
