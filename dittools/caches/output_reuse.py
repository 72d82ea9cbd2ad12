"""Reuse of whole transformer calls: by a mask made before sampling, or by a signal of how much has changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from dittools.caches.state import BranchState, Entry, StepCall, Trajectory
from dittools.caches.step_cache import Key, StepCache

if TYPE_CHECKING:
    from dittools.caches.base import OutputCache

NOT_FINITE = "signal not finite"
MOST = 0.6
"""Share of calls above which reuse changes the picture."""


class OutputReuse(StepCache):
    """A cache of outputs at work. The first branch called in a step decides for the others of that step.

    Args:
        cache: bound to the model.
        run: what is known beforehand.
    """

    cache: OutputCache

    def __init__(self, cache: OutputCache, run: Trajectory):
        super().__init__(cache, run)
        self._leader: Key | None = None  # the branch whose signals are read in the present step
        self._verdict: tuple[int, bool] | None = None  # (step, compute) of the leader
        self._latest = -1  # step before this one that the leader computed
        self._why: str | None = None  # of the call whose first block is to be watched

    def watch(self, seen: torch.Tensor | None) -> bool:
        state = self._states[self._now.key]
        if seen is None:
            self.notes[
                f"{self.cache.name}: every step is computed, since the first block cannot be watched: "
                "it is of an unknown kind, or context parallelism shows each device another part"
            ] = None
            return self._lead(state, "nothing to watch")
        return self._judge(state, seen, self._why)

    def hear(self, entry: Entry) -> bool:
        state, compute = self._states[self._now.key], not entry.reused
        state.accumulated_diff = entry.accumulated_diff
        self._verdict = self._now.call.step, compute
        self.log.append(entry)
        self.bad_signals += entry.why == NOT_FINITE
        state.skips += entry.reused
        return compute

    def _begin_step(self, step: int) -> None:
        super()._begin_step(step)
        self._leader = None
        if self._verdict is not None and self._verdict[1]:
            self._latest = self._verdict[0]

    def _decide_call(self, state: BranchState, latents: torch.Tensor, why: str | None) -> bool | None:
        key, call, _ = self._now
        if call.noise is None and self.cache.needs_noise:
            self.notes[f"{self.cache.name}: the scheduler tells no noise level: every step is computed"] = None
        leads = self._leader is None
        if leads:
            self._leader = key
        if not leads and self._verdict is not None and self._verdict[0] == call.step:
            return self._log(state, self._verdict[1] or why is not None, why, None)
        if self.mask is not None:
            return self._lead(state, why, scheduled=self._scheduled(call.step))
        if self.signal_source == "latents":
            return self._judge(state, self._picture(state, latents), why)
        self._why = why
        return None

    def _judge(self, state: BranchState, seen: torch.Tensor, why: str | None) -> bool:
        """Read the signal, and weigh it; it is read in forced steps too, so that the next one is of one step."""
        signal = self.cache.signal(state, seen, self._now.call)
        if signal is not None and not math.isfinite(signal):
            self.bad_signals += 1
            why, signal = NOT_FINITE, None
        if why is None and signal is None:
            why = "nothing to compare with yet"
        return self._lead(state, why, signal)

    def _lead(
        self, state: BranchState, why: str | None, signal: float | None = None, scheduled: bool | None = None
    ) -> bool:
        """Decide for all branches of this step: by the schedule where there is one, else by the sum of signals."""
        if signal is not None:
            self.cache.add(state, signal)
        enough = self.cache.enough(state) if scheduled is None else scheduled
        compute = why is not None or enough
        if scheduled is None:  # what ranks see may differ in its last bits
            compute = bool(self.ranks.agree_max([compute])[0])
        self._verdict = self._now.call.step, compute
        return self._log(state, compute, why, signal)

    def _missed(self, state: BranchState, step: int) -> bool:
        return state.computed < self._latest or (self.mask is not None and any(self.mask[state.computed + 1 : step]))

    def _enough_in_a_row(self, state: BranchState, step: int) -> bool:
        return 0 < self.cache.max_consecutive_skips < step - state.computed

    def _predict(self, state: BranchState, latents: list[torch.Tensor], call: StepCall) -> list[torch.Tensor]:
        return self.cache.predict(state, latents, call)

    def _update(
        self, state: BranchState, latents: list[torch.Tensor], output: Sequence[torch.Tensor], call: StepCall
    ) -> None:
        if self.cache.never():
            return
        channels, given, made = self.run.model.channels, latents[0], output[0]
        if given.ndim == made.ndim:
            state.channels = min(given.shape[channels], made.shape[channels])
        self.cache.learn(state, self._picture(state, given), self._picture(state, made))
        self.cache.update(state, latents, output, call)

    def _picture(self, state: BranchState, tensor: torch.Tensor) -> torch.Tensor:
        """What of the latents or the output is of the picture that is drawn, channels second: ``[B, C, ...]``."""
        channels, tokens = self.run.model.channels, self._now.call.tokens
        if tensor.ndim == 3 and tokens is not None:
            tensor = tensor[:, tokens]
        if state.channels is not None and tensor.shape[channels] > state.channels:
            tensor = tensor.narrow(channels, 0, state.channels)
        return tensor.movedim(channels, 1)

    def _gained(self, reused: int) -> Iterator[str]:
        if not reused:
            judged = any(entry.signal is not None and entry.why is None for entry in self.log)
            more = "raise the threshold" if judged else "its rules compute every step of this run: draw in more"
            yield f"nothing was reused: {more}, or drop the cache"
        elif reused > MOST * len(self.log):
            less = self.cache.to_reuse_less
            yield f"{reused} of {len(self.log)} calls were reused: expect another picture, {less}"
