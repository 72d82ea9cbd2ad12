"""A cache at work in one run: whose call it is, what forces it to be computed, what is held, and what is counted.

What any cache needs is here. Caches that reuse the transformer's output decide in `output_reuse`, those that reuse
self-attention in `attention`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from dittools.caches.state import BranchState, Entry, Latents, StepCall, Trajectory
from dittools.clock import StepInfo
from dittools.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from dittools.caches.base import Cache

FEW_STEPS = 10

Key = tuple[int, str]
"""Which history a call belongs to: number of the transformer, name of the guidance branch."""


class Present(NamedTuple):
    """The call that is under way."""

    key: Key
    call: StepCall
    step_info: StepInfo


class StepCache:
    """Decides every call of the transformer in one run, holds what is reused, and counts.

    A call is `begin`, then `watch` where that is asked for, then `predict` for a reused call or `update` for a
    computed one. Subclasses decide in `_decide_call`.

    Args:
        cache: bound to the model.
        run: what is known beforehand.

    Attributes:
        mask: steps to compute, where that is known beforehand.
        log: every call. attention_reused: (step, layer, key) of attention calls that were not computed.
        bad_signals: signals that were no finite number.
        peak_bytes: most that was held.
    """

    def __init__(self, cache: Cache, run: Trajectory):
        self.cache = cache
        self.run = run
        self.ranks: Ranks = ALONE  # that decide alike
        self.mask = cache.mask(run)
        self.notes = dict.fromkeys(cache.why_not(run))
        self.log: list[Entry] = []
        self.bad_signals = 0
        self.peak_bytes = 0
        self.attention_reused: dict[tuple[int, int, Key], None] = {}
        self._states: dict[Key, BranchState] = {}
        self._step = -1
        self._calls: Counter[Key] = Counter()  # of each branch in this step
        self._keys: set[Key] = set()  # called in this step
        self._keys_before: set[Key] = set()  # and in the one before
        self._now: Present | None = None

    @property
    def signal_source(self) -> str:
        """What the decision looks at; see `Cache`."""
        return "nothing" if self.mask is not None else self.cache.signal_source

    def begin(
        self,
        step_info: StepInfo,
        part: int,
        latents: Latents,
        noise: float | None,
        why: str | None = None,
        *,
        form: Hashable = None,
        tokens: slice | None = None,
    ) -> bool | None:
        """Decide a call: True computes, False reuses, None asks to `watch` the first block.

        Args:
            step_info: step and branch of the call.
            part: which transformer, 0 but for a second expert.
            latents: what the transformer is given.
            noise: share of noise in them, where it is known.
            why: this call must be computed, where the caller knows a reason.
            form: what must be equal of a call and of the one that is reused for it; by default the latents' shapes.
            tokens: where the picture is in packed latents ``[B, S, C]``; None for all of them.
        """
        latents = listed(latents)
        if step_info.step != self._step:
            self._begin_step(step_info.step)
        self._calls[part, step_info.branch] += 1
        again = self._calls[part, step_info.branch]
        # A branch called twice in one step, as some samplers do: each call has a history of its own.
        key = part, step_info.branch if again == 1 else f"{step_info.branch}#{again}"
        self._keys.add(key)
        timestep = self.run.timesteps[step_info.step] if step_info.step < len(self.run.timesteps) else None
        self._now = Present(key, StepCall(step_info.step, timestep, key[1], noise, tokens), step_info)
        state = self._state_of(key, form or tuple(tensor.shape for tensor in latents))
        return self._decide_call(state, latents[0], self._forced(state, step_info) or why)

    def pass_by(self, step_info: StepInfo, part: int, why: str) -> None:
        """A call that is computed, of which nothing is kept: nobody knows its step."""
        self._now = None
        self.log.append(Entry(step_info.step, step_info.branch, part, False, why, None, 0.0))

    def watch(self, seen: torch.Tensor | None) -> bool:
        """The first block was reached, after `begin` gave None. True computes on; False reuses.

        seen: tokens ``[B, S, width]``, as the cache's ``signal_source`` says; None where they cannot be told.
        """
        raise NotImplementedError

    def predict(self, latents: Latents) -> list[torch.Tensor]:
        """The output of a reused call; with reuse "stack", what its blocks add."""
        key, call, _ = self._now
        out = self._predict(self._states[key], listed(latents), call)
        self._measure()
        self._let_go(key)
        return out

    def update(self, latents: Latents, output: Sequence[torch.Tensor]) -> None:
        """Keep what later calls need of a computed one. ``output`` as in `OutputCache.update`."""
        if self._now is None:
            return
        key, call, step_info = self._now
        state = self._states[key]
        self._update(state, listed(latents), output, call)
        state.computed, state.dense, state.skips, state.accumulated_diff = step_info.step, step_info.dense, 0, 0.0
        for other in [o for o in self._states if o[0] != key[0]]:
            self._forget(other)  # what one expert gave is nothing to the next, and would only be held
        self._measure()
        self._let_go(key)

    @property
    def present(self) -> Present | None:
        """The call that is under way, for `catch_up`."""
        return self._now

    def catch_up(self, present: Present | None, latents: Latents, output: Sequence[torch.Tensor]) -> None:
        """`update` of a call that others computed, once its output is here."""
        now, self._now = self._now, present
        under_way = None if now is None else self._states.get(now.key)
        try:
            self.update(latents, output)
        finally:
            self._now = now
            if under_way is not None:  # in the last step, what is let go is not that of the call that is yet to end
                self._states.setdefault(now.key, under_way)

    def hear(self, entry: Entry) -> bool:
        """The present call is computed by others, which decided it as ``entry`` says: as `watch`."""
        raise NotImplementedError

    def needs_others(self, step: int) -> bool:
        """Whether a call of this step is decided, or made up, from what other branches gave in it."""
        return False

    def attention(self, layer: int, q: torch.Tensor) -> torch.Tensor | None:
        """A layer's kept output ``[B, S, H, D]`` where this step reuses it, else None."""
        return None

    def keep_attention(self, layer: int, out: torch.Tensor) -> None:
        """Keep a layer's computed output, where later steps reuse it."""

    # What subclasses decide and keep

    def _decide_call(self, state: BranchState, latents: torch.Tensor, why: str | None) -> bool | None:
        """The answer of `begin`. ``why``: what forces this call to be computed."""
        raise NotImplementedError

    def _predict(self, state: BranchState, latents: list[torch.Tensor], call: StepCall) -> list[torch.Tensor]:
        raise NotImplementedError

    def _update(self, state: BranchState, latents: list[torch.Tensor], output, call: StepCall) -> None:
        raise NotImplementedError

    def _missed(self, state: BranchState, step: int) -> bool:
        """Whether a step that should have been computed since came and went without a call of this branch."""
        return False

    def _enough_in_a_row(self, state: BranchState, step: int) -> bool:
        """Whether no more steps may be reused before one is computed."""
        return False

    # Decisions

    def _begin_step(self, step: int) -> None:
        self._step, self._calls = step, Counter()
        self._keys_before, self._keys = self._keys, set()

    def _state_of(self, key: Key, form: Hashable) -> BranchState:
        """What is held for a call; nothing, where what was held is of calls of another form."""
        state = self._states.get(key)
        if state is None or state.form != form:
            self._forget(key)
            state = self._states[key] = BranchState(form)
        return state

    def _forced(self, state: BranchState, step_info: StepInfo) -> str | None:
        if step_info.step < len(self.run.forced) and self.run.forced[step_info.step]:
            return "a step that is always computed"
        if state.computed < 0:
            return "nothing to reuse yet"
        if self._missed(state, step_info.step):
            return "a computed step was missed"
        if self.run.sparse and state.dense != step_info.dense:
            return "attention switches between dense and sparse"
        if self._enough_in_a_row(state, step_info.step):
            return "enough steps reused in a row"
        return None

    def _scheduled(self, step: int, mask: Sequence[bool] | None = None) -> bool:
        """Whether a mask made before sampling computes a step; steps behind its end are computed."""
        mask = self.mask if mask is None else mask
        return mask[step] if step < len(mask) else True

    def _log(self, state: BranchState, compute: bool, why: str | None, signal: float | None) -> bool:
        """Count a decision, and pass it on."""
        (part, branch), call, _ = self._now
        forced = why if compute else None
        self.log.append(Entry(call.step, branch, part, not compute, forced, signal, state.accumulated_diff))
        if not compute:
            state.skips += 1
        return compute

    # What is held

    def _forget(self, key: Key) -> None:
        self._states.pop(key, None)

    def _let_go(self, key: Key) -> None:
        """After its last step a branch needs nothing: the frames are decoded next, which takes memory too."""
        step = self._now.call.step
        if step < self.run.steps - 1:
            return
        if self.run.forced[step]:  # nothing is reused in it, by whichever branch is still to come
            self.release()
            return
        for over in [key, *(other for other in self._states if other not in self._keys_before)]:
            self._forget(over)

    def _held(self) -> Iterator[torch.Tensor]:
        for state in self._states.values():
            for tensors in (*state.factors, state.tensors.values()):
                yield from tensors

    def tensors(self) -> list[torch.Tensor]:
        """Everything held, each once."""
        return list({id(tensor): tensor for tensor in self._held()}.values())

    def held_bytes(self) -> int:
        """Bytes of everything held now."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def release(self) -> None:
        """Let go of every tensor; the log stays."""
        self._states.clear()

    def _measure(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.held_bytes())

    # Accounts

    def steps(self, reused: bool) -> list[int]:
        """Steps in which every branch was reused, or in which at least one was computed."""
        computed = {entry.step for entry in self.log if not entry.reused}
        return sorted({entry.step for entry in self.log} - computed) if reused else sorted(computed)

    def guard_rails(self) -> list[str]:
        """Notes on a run that hardly gained, or risked much."""
        name, log = self.cache.name, self.log
        notes = list(self.notes)
        if self.bad_signals:
            notes.append(f"{name}: {self.bad_signals} signals were not finite, and their steps computed")
        if not log or self.cache.never():
            return notes
        if self.run.steps <= FEW_STEPS:
            notes.append(f"{name}: with {self.run.steps} steps each one matters, and reuse costs much or saves little")
        if any(entry.branch.startswith("call") for entry in log):
            notes.append(
                f"{name}: the pipeline names no guidance branches: they are told apart by their order in a step"
            )
        if log[-1].step >= self.run.steps - 1:  # the run came to its end
            notes += (f"{name}: {note}" for note in self._gained(sum(entry.reused for entry in log)))
        return notes

    def _gained(self, reused: int) -> Iterator[str]:
        """Notes on how many calls of a whole run were reused."""
        raise NotImplementedError


def listed(latents: Latents) -> list[torch.Tensor]:
    """The latents as a list."""
    return [latents] if isinstance(latents, torch.Tensor) else list(latents)
