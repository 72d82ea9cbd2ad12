"""One step cache over one run: decides every call of the transformer, holds what is reused, and counts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch

from dittools.caches.attention import AttentionCache
from dittools.caches.base import Cache, Lane, OutputCache, StepCall, Trajectory
from dittools.caches.fastercache import FasterCache, reweighted
from dittools.clock import Tick

FEW_STEPS = 10
MOST = 0.6
Latents = torch.Tensor | Sequence[torch.Tensor]
"""What a transformer is given to denoise; of several tensors (pictures of several sizes, sound) the first decides."""


class Entry(NamedTuple):
    """One call of a transformer. ``why``: what forced it to be computed; ``signal``: what the decision looked at."""

    step: int
    branch: str
    part: int
    reused: bool
    why: str | None
    signal: float | None
    spent: float


class Reuse:
    """A cache at work in one run. The first branch called in a step decides for the others of that step.

    Args:
        cache: bound to the model.
        run: what is known beforehand.

    Attributes:
        mask: steps to compute, where that is known beforehand.
        log: every call. attention_reused: (step, layer, lane) of attention calls that were not computed.
        peak_bytes: most that was held.
    """

    def __init__(self, cache: Cache, run: Trajectory):
        self.cache = cache
        self.run = run
        self.mask = cache.mask(run)
        self.notes = dict.fromkeys(cache.why_not(run))
        self.log: list[Entry] = []
        self.bad_signals = 0
        self.peak_bytes = 0
        self.attention_reused: dict[tuple[int, int, tuple[int, str]], None] = {}
        self._lanes: dict[tuple[int, str], Lane] = {}
        self._why: str | None = None
        self._leader: tuple[int, str] | None = None  # the lane whose signals are read in the present step
        self._verdict: tuple[int, bool] | None = None  # (step, compute) of the leader
        self._latest = -1  # step before this one that the leader computed
        self._seen: tuple[int, Counter[tuple[int, str]]] = (-1, Counter())
        self._keys: set[tuple[int, str]] = set()  # lanes called in this step
        self._before: set[tuple[int, str]] = set()  # and in the one before
        self._now: tuple[tuple[int, str], StepCall, Tick] | None = None
        self._tokens: slice | None = None  # of the picture, in the latents of this call
        self._attention: dict[tuple[int, tuple[int, str]], list[tuple[int, torch.Tensor]]] = {}  # by layer and lane
        self._reuse_attention = False
        self._guided: tuple[int, torch.Tensor] | None = None
        rebuilds = isinstance(cache, FasterCache) and cache.branch_interval > 1
        self._branch_mask = cache.branch_mask(run) if rebuilds else None

    # One call: `begin`, then `watch` where it is asked for, then `stand_in` or `carry`.

    @property
    def watches(self) -> str:
        """What the decision looks at; see `Cache`."""
        return "nothing" if self.mask is not None else self.cache.watches

    def begin(
        self,
        tick: Tick,
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
            part: which transformer, 0 but for a second expert.
            latents: what the transformer is given.
            noise: share of noise in them, where it is known.
            why: this call must be computed, where the caller knows a reason.
            form: what must be equal of a call and of the one that is reused for it; by default the latents' shapes.
            tokens: where the picture is in packed latents ``[B, S, C]``; None for all of them.
        """
        latents = _listed(latents)
        step, seen = self._seen
        if step != tick.step:
            seen = Counter()
            self._seen = tick.step, seen
            self._leader = None
            if self._verdict is not None and self._verdict[1]:
                self._latest = self._verdict[0]
            self._before, self._keys = self._keys, set()
        seen[part, tick.branch] += 1
        again = seen[part, tick.branch]
        # A branch called twice in one step, as some samplers do: each call has a history of its own.
        key = part, tick.branch if again == 1 else f"{tick.branch}#{again}"
        self._keys.add(key)
        timestep = self.run.timesteps[tick.step] if tick.step < len(self.run.timesteps) else None
        self._now = key, StepCall(tick.step, timestep, key[1], noise), tick
        self._tokens = tokens
        lane = self._lane_of(key, form or tuple(tensor.shape for tensor in latents))
        why = self._forced(lane, tick) or why
        if noise is None and self.cache.needs_noise:
            self.notes[f"{self.cache.name}: the scheduler tells no noise level: every step is computed"] = None
        if self.cache.level == "attention":
            return self._begin_attention(key, lane, why, latents[0])
        leads = self._leader is None
        if leads:
            self._leader = key
        if not leads and self._verdict is not None and self._verdict[0] == tick.step:
            return self._decide(lane, self._verdict[1] or why is not None, why, None)
        if self.mask is not None:
            return self._lead(lane, why, None, scheduled=self.mask[tick.step] if tick.step < len(self.mask) else True)
        if self.watches == "latents":
            return self._judge(lane, self._picture(lane, latents[0]), why)
        self._why = why
        return None

    def pass_by(self, tick: Tick, part: int, why: str) -> None:
        """A call that is computed, of which nothing is kept: nobody knows its step."""
        self._now, self._reuse_attention = None, False
        self.log.append(Entry(tick.step, tick.branch, part, False, why, None, 0.0))

    def watch(self, seen: torch.Tensor | None) -> bool:
        """The first block was reached, after `begin` gave None. True computes on; False reuses.

        seen: tokens ``[B, S, width]``, as the cache's ``watches`` says; None where they cannot be told.
        """
        lane = self._lanes[self._now[0]]
        if seen is None:
            self.notes[
                f"{self.cache.name}: every step is computed, since the first block cannot be watched: "
                "it is of an unknown kind, or context parallelism shows each device another part"
            ] = None
            return self._lead(lane, "nothing to watch", None)
        return self._judge(lane, seen, self._why)

    def stand_in(self, latents: Latents) -> list[torch.Tensor]:
        """The output of a reused call; with reuse "stack", what its blocks add."""
        key, call, _ = self._now
        lane, latents = self._lanes[key], _listed(latents)
        if self._branch_mask is not None:
            out = self._rebuilt(lane, call)
            self._let_go(key)
            return [out]
        out = self.cache.stand_in(lane, latents, call)
        self._measure()
        self._let_go(key)
        return out

    def carry(self, latents: Latents, output: Sequence[torch.Tensor]) -> None:
        """Keep what later calls need of a computed one. ``output`` as in `OutputCache.carry`."""
        if self._now is None:
            return
        key, call, tick = self._now
        lane, latents = self._lanes[key], _listed(latents)
        if isinstance(self.cache, OutputCache):
            if not self.cache.never():
                self._learn(lane, latents[0], output[0])
                self.cache.carry(lane, latents, output, call)
        elif self._branch_mask is not None:
            self._keep_difference(lane, call, output[0])
        lane.computed, lane.dense, lane.skips, lane.spent = tick.step, tick.dense, 0, 0.0
        self._drop_other_experts(key)
        self._measure()
        self._let_go(key)

    # Decisions

    def _lane_of(self, key: tuple[int, str], form: Hashable) -> Lane:
        """What is held for a call; nothing, where what was held is of calls of another form."""
        lane = self._lanes.get(key)
        if lane is None or lane.form != form:
            self._forget(key)
            lane = self._lanes[key] = Lane(form)
        return lane

    def _forget(self, key: tuple[int, str]) -> None:
        self._lanes.pop(key, None)
        for place in [place for place in self._attention if place[1] == key]:
            del self._attention[place]

    def _picture(self, lane: Lane, tensor: torch.Tensor) -> torch.Tensor:
        """What of the latents or the output is of the picture that is drawn, channels second: ``[B, C, ...]``."""
        channels = self.run.model.channels
        if tensor.ndim == 3 and self._tokens is not None:
            tensor = tensor[:, self._tokens]
        if lane.channels is not None and tensor.shape[channels] > lane.channels:
            tensor = tensor.narrow(channels, 0, lane.channels)
        return tensor.movedim(channels, 1)

    def _learn(self, lane: Lane, latents: torch.Tensor, output: torch.Tensor) -> None:
        channels = self.run.model.channels
        if latents.ndim == output.ndim:
            lane.channels = min(latents.shape[channels], output.shape[channels])
        self.cache.learn(lane, self._picture(lane, latents), self._picture(lane, output))

    def _forced(self, lane: Lane, tick: Tick) -> str | None:
        if tick.step < len(self.run.forced) and self.run.forced[tick.step]:
            return "a step that is always computed"
        if lane.computed < 0:
            return "nothing to reuse yet"
        if self.cache.level == "output" and self._missed(lane, tick.step):
            return "a computed step was missed"
        if self.run.sparse and lane.dense != tick.dense:
            return "attention switches between dense and sparse"
        cap = getattr(self.cache, "max_skips", 0)
        if cap and tick.step - lane.computed > cap:
            return "enough steps reused in a row"
        return None

    def _missed(self, lane: Lane, step: int) -> bool:
        """Whether a step that should have been computed since came and went without a call of this branch."""
        return lane.computed < self._latest or (self.mask is not None and any(self.mask[lane.computed + 1 : step]))

    def _judge(self, lane: Lane, seen: torch.Tensor, why: str | None) -> bool:
        """Read the signal, and weigh it; it is read in forced steps too, so that the next one is of one step."""
        call = self._now[1]
        signal = self.cache.signal(lane, seen, call)
        if signal is not None and not math.isfinite(signal):
            self.bad_signals += 1
            why, signal = "signal not finite", None
        if why is None and signal is None:
            why = "nothing to compare with yet"
        return self._lead(lane, why, signal)

    def _lead(self, lane: Lane, why: str | None, signal: float | None, scheduled: bool | None = None) -> bool:
        if signal is not None:
            lane.spent = signal + (lane.spent if self.cache.adds_up else 0.0)
        enough = scheduled if scheduled is not None else not lane.spent < getattr(self.cache, "threshold", 0)
        compute = why is not None or enough
        self._verdict = self._now[1].step, compute
        return self._decide(lane, compute, why, signal)

    def _decide(self, lane: Lane, compute: bool, why: str | None, signal: float | None) -> bool:
        (part, branch), call, _ = self._now
        forced = why if compute else None
        self.log.append(Entry(call.step, branch, part, not compute, forced, signal, lane.spent))
        if not compute:
            lane.skips += 1
        return compute

    def _drop_other_experts(self, key: tuple[int, str]) -> None:
        """What one expert gave is nothing to the next, and would only be held."""
        for other in [o for o in self._lanes if o[0] != key[0]]:
            self._forget(other)

    def _let_go(self, key: tuple[int, str]) -> None:
        """After its last step a branch needs nothing: the frames are decoded next, which takes memory too."""
        step = self._now[1].step
        if step < self.run.steps - 1:
            return
        if self.run.forced[step]:  # nothing is reused in it, by whichever branch is still to come
            self.release()
            return
        for over in [key, *(lane for lane in self._lanes if lane not in self._before)]:
            self._forget(over)
        rebuilds = self._branch_mask is not None and not self._branch_mask[step]
        if not rebuilds or not any(_unguided(branch) for _, branch in self._lanes):
            self._guided = None

    # Attention caches

    def _begin_attention(self, key: tuple[int, str], lane: Lane, why: str | None, latents: torch.Tensor) -> bool:
        _, call, tick = self._now
        scheduled = self.mask[tick.step] if tick.step < len(self.mask) else True
        self._reuse_attention = not scheduled and why is None
        compute = True
        if self._branch_mask is not None and lane.computed < 0 and _both(call.branch, latents):
            self.notes["fastercache: both branches come in one batch, so only attention is reused"] = None
        if self._branch_mask is not None and _unguided(call.branch):
            compute = self._branch_mask[tick.step] if tick.step < len(self._branch_mask) else True
            if not compute and not self._can_rebuild(lane, call, latents):
                compute, why = True, "no guided output in this step"
                self.notes["fastercache: the unguided branch comes first, so it cannot be made of the guided one"] = (
                    None
                )
        return self._decide(lane, compute or why is not None, why, None)

    def attention(self, layer: int, q: torch.Tensor) -> torch.Tensor | None:
        """A layer's kept output ``[B, S, H, D]`` where this step reuses it, else None."""
        if not self._reuse_attention or self._now is None:
            return None
        kept = self._recent(layer, q)
        if not kept:
            return None
        self.attention_reused[self._now[1].step, layer, self._now[0]] = None
        # Copies, here and where it is kept: a compiled block may use the memory of what it is given again.
        out = self.cache.stand_in(kept)
        return out.clone() if out is kept[-1] else out

    def _recent(self, layer: int, q: torch.Tensor) -> list[torch.Tensor]:
        """What is kept of a layer, up to a gap: a branch that was rebuilt meanwhile has nothing recent."""
        step, found = self._now[1].step, []
        for then, tensor in reversed(self._attention.get((layer, self._now[0]), [])):
            # The newest is reused for less than an interval; a computed one before it is at most one older.
            oldest = self.cache.interval if found else self.cache.interval - 1
            if step - then > oldest or tensor.shape[:3] != q.shape[:3]:
                break
            step, found = then, [tensor, *found]
        return found

    def keep_attention(self, layer: int, out: torch.Tensor) -> None:
        """Keep a layer's computed output."""
        if not isinstance(self.cache, AttentionCache) or self.cache.interval == 1 or self._now is None:
            return
        kept = self._attention.setdefault((layer, self._now[0]), [])
        step = self._now[1].step
        if kept and kept[-1][0] == step:  # the same forward, run again
            kept.pop()
        kept.append((step, out.detach().clone()))
        del kept[: -self.cache.keeps]

    def _can_rebuild(self, lane: Lane, call: StepCall, latents: torch.Tensor) -> bool:
        difference = lane.tensors.get("difference")
        guided = self._guided
        return (
            difference is not None
            and guided is not None
            and guided[0] == call.step
            and guided[1].shape == difference.shape
        )

    def _keep_difference(self, lane: Lane, call: StepCall, out: torch.Tensor) -> None:
        if not _unguided(call.branch):
            self._guided = call.step, out.detach()
        elif self._guided is not None and self._guided[0] == call.step and self._guided[1].shape == out.shape:
            lane.tensors["difference"] = out.detach() - self._guided[1]

    def _rebuilt(self, lane: Lane, call: StepCall) -> torch.Tensor:
        difference, guided = lane.tensors["difference"], self._guided[1]
        low, high = self.cache.gains(lane.skips, call)
        if difference.ndim < 4:
            self.notes["fastercache: latents are packed, so frequencies of the difference are not weighted"] = None
            return guided + difference
        return guided + reweighted(difference, low, high)

    # Accounts

    def tensors(self) -> list[torch.Tensor]:
        """Everything held, each once."""
        held = [t for lane in self._lanes.values() for group in (*lane.factors, lane.tensors.values()) for t in group]
        held += [t for kept in self._attention.values() for _, t in kept]
        if self._guided is not None:
            held.append(self._guided[1])
        return list({id(t): t for t in held}.values())

    def held_bytes(self) -> int:
        """Bytes of everything held now."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def release(self) -> None:
        """Let go of every tensor; the log stays."""
        self._lanes.clear()
        self._attention.clear()
        self._guided = None

    def _measure(self) -> None:
        self.peak_bytes = max(self.peak_bytes, self.held_bytes())

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
        reused = sum(entry.reused for entry in log)
        if self.cache.level == "output" and self._complete():
            if not reused:
                judged = any(entry.signal is not None and entry.why is None for entry in log)
                more = "raise the threshold" if judged else "its rules compute every step of this run: draw in more"
                notes.append(f"{name}: nothing was reused: {more}, or drop the cache")
            elif reused > MOST * len(log):
                less = "lower the threshold" if hasattr(self.cache, "threshold") else "compute more steps"
                notes.append(f"{name}: {reused} of {len(log)} calls were reused: expect another picture, {less}")
        elif self._complete() and not self.attention_reused and not reused:
            notes.append(f"{name}: nothing was reused: no step lies within its window")
        return notes

    def _complete(self) -> bool:
        return self.log[-1].step >= self.run.steps - 1


def _listed(latents: Latents) -> list[torch.Tensor]:
    return [latents] if isinstance(latents, torch.Tensor) else list(latents)


def _both(branch: str, latents: torch.Tensor) -> bool:
    """Whether a call is of both branches: each half of the batch has the same latents. Waits for the device."""
    if not {"cond", "uncond"} <= set(branch.partition("#")[0].split("_")) or len(latents) % 2:
        return False
    return torch.equal(*latents.chunk(2))


def _unguided(branch: str) -> bool:
    """Whether this is the branch without the prompt, alone: "uncond", "pred_uncond", not "cond_uncond"."""
    parts = branch.partition("#")[0].split("_")
    return "uncond" in parts and "cond" not in parts
