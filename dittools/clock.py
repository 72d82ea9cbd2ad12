"""Which step of which run a transformer call belongs to: read from the schedule, not from counting calls."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch

from dittools.config import whole_steps


@dataclass(frozen=True)
class Tick:
    """Where one call stands: whether it starts a run, its step of ``steps``, its branch, dense or not."""

    new_run: bool
    step: int
    steps: int
    branch: str
    dense: bool


class StepClock:
    """Told of every transformer call; knows when a run starts, and the step of each call.

    A run starts with a new schedule tensor (every pipeline call makes one), a step that lies before the last
    one of the same branch, or a new signature (token grid, dtype, device). The schedule goes to the CPU once
    per run.

    Args:
        dense_steps, dense_last_steps: as in `dittools.Config`.
    """

    def __init__(self, dense_steps: float | int = 0, dense_last_steps: float | int = 0):
        self.dense_steps = dense_steps
        self.dense_last_steps = dense_last_steps
        self.reset()

    def reset(self) -> None:
        """Forget the run: the next call starts one."""
        self._timesteps: torch.Tensor | None = None
        self._signature: Hashable = None
        self._start()

    def tell(
        self,
        timestep: torch.Tensor | float,
        timesteps: torch.Tensor | None,
        *,
        branch: str | None = None,
        signature: Hashable = None,
        step_index: int | None = None,
        steps: int | None = None,
    ) -> Tick:
        """Note one transformer call.

        Args:
            timestep: what the transformer is given; of one timestep a token, the largest counts (clean tokens
                have 0). Read from the device only when ``step_index`` is not known.
            timesteps: the scheduler's schedule ``[steps]``, the very tensor. None when there is no scheduler.
            branch: name of the guidance lane. None: calls within a step are told apart by their order.
            signature: anything that cannot change within a run.
            step_index: index of the step where the pipeline says it, on the host.
            steps: number of steps where the pipeline says it; the schedule's length by default.
        """
        fresh = self._timesteps is not timesteps or self._signature != signature or self._schedule is None
        if fresh:
            self._timesteps, self._signature = timesteps, signature
            self._start()
        if self._schedule is None:
            self._schedule = [_value(timestep)] if timesteps is None else timesteps.flatten().tolist()
        known = step_index is not None
        step = step_index if known else self._find(_value(timestep), branch)
        if self._goes_back(step, branch) and not fresh:
            fresh, schedule = True, self._schedule
            self._start()
            self._schedule = schedule
            step = step_index if known else self._find(_value(timestep), branch)

        if step != self._step:
            self._calls_a_step = max(self._calls_a_step, self._calls)
            self._step, self._calls, self._seen = step, 0, set()
        name = f"call{self._calls}" if branch is None else branch
        self._calls += 1
        self._seen.add(name)
        self._last[name] = step
        total = max(steps or len(self._schedule), step + 1)
        return Tick(fresh, step, total, name, self.dense(step, total))

    def dense(self, step: int, steps: int) -> bool:
        """Whether this step of so many is one of the dense ones."""
        last_sparse = steps - whole_steps(self.dense_last_steps, steps)
        return not whole_steps(self.dense_steps, steps) <= step < last_sparse

    def timesteps(self, steps: int) -> tuple[float, ...]:
        """The timesteps of the present run of so many steps; empty where they are not known.

        A pipeline that enters its schedule late, as image to image does, runs the last ones.
        """
        known = self._schedule or []
        return tuple(known[-steps:]) if len(known) >= steps and self._timesteps is not None else ()

    def _start(self) -> None:
        self._schedule: list[float] | None = None
        self._step = -1
        self._calls = 0  # so far in this step
        self._calls_a_step = 0  # most that an earlier step had
        self._seen: set[str] = set()  # branches called in this step
        self._last: dict[str, int] = {}  # last step of each branch

    def _goes_back(self, step: int, branch: str | None) -> bool:
        return step < (self._step if branch is None else self._last.get(branch, step))

    def _find(self, value: float, branch: str | None) -> int:
        """Index of a timestep in the schedule; among equal ones, the one whose turn it is."""
        nearest = min(self._schedule, key=lambda t: abs(t - value))
        indices = [i for i, t in enumerate(self._schedule) if t == nearest]
        if self._step in indices:
            later = [i for i in indices if i > self._step]
            # Second-order schedulers list a timestep twice: the step is over once its branches have all been
            # called.
            over = branch in self._seen if branch is not None else 0 < self._calls_a_step <= self._calls
            return later[0] if later and over else self._step
        return next((i for i in indices if i > self._step), indices[0])


def _value(timestep: torch.Tensor | float) -> float:
    return float(timestep.max()) if isinstance(timestep, torch.Tensor) else float(timestep)
