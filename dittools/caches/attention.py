"""What caches have in common that reuse self-attention's outputs while everything around it runs.

Every attention call already comes by the runtime, so nothing is hooked: what is kept is per layer and branch, compiled
blocks keep their graphs, and projections, norms, cross-attention and feed-forward layers run with fresh inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.caches.base import Cache
from dittools.caches.options import cooldown_option, option, warmup_option
from dittools.caches.state import BranchState, Shapes, StepCall, Trajectory
from dittools.caches.step_cache import Key, StepCache


@dataclass(frozen=True)
class AttentionCache(Cache):
    """A cache that reuses what self-attention gave, in some steps.

    Attributes:
        keeps: how many computed results of a layer and branch are held.
    """

    level: ClassVar[str] = "attention"
    keeps: ClassVar[int] = 1

    interval: int = option(2, "one computed attention step in so many; 1 computes all", min=1)
    warmup_steps: float | int = warmup_option(1)
    cooldown_steps: float | int = cooldown_option(1)

    def begin_run(self, run: Trajectory) -> AttentionReuse:
        return AttentionReuse(self, run)

    def predict(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """A layer's output from kept ones, oldest first."""
        return kept[-1]

    def bytes_held(self, shapes: Shapes) -> int:
        """Bytes kept between calls, at most."""
        if self.interval == 1:
            return 0
        return shapes.bytes * self.keeps * shapes.lanes * shapes.layers * shapes.tokens * shapes.width


def in_window(interval: int, low: float, high: float, run: Trajectory) -> list[bool]:
    """Compute one step in ``interval`` while the timestep lies between ``low`` and ``high``, every step elsewhere."""
    mask, since, timesteps = [], 0, _of_1000(run.timesteps)
    for step, must in enumerate(run.forced):
        inside = bool(timesteps) and low < timesteps[step] < high
        compute = must or not inside or since + 1 >= interval
        since = 0 if compute else since + 1
        mask.append(compute)
    return mask


def _of_1000(timesteps: Sequence[float]) -> Sequence[float]:
    """A schedule as one that falls from 1000, where it goes from 1 to 0, or from 0, which is noise, to 1."""
    if not timesteps or max(timesteps) > 1:
        return timesteps
    return [1000 * (1 - t if timesteps[0] < timesteps[-1] else t) for t in timesteps]


class AttentionReuse(StepCache):
    """A cache of attention outputs at work: every call of the transformer runs, some of its attention does not.

    Args:
        cache: bound to the model.
        run: what is known beforehand.
    """

    cache: AttentionCache

    def __init__(self, cache: AttentionCache, run: Trajectory):
        super().__init__(cache, run)
        # By layer and branch, oldest first: (step, output).
        self._outputs: dict[tuple[int, Key], list[tuple[int, torch.Tensor]]] = {}
        self._reuses = False  # in the present call

    def _decide_call(self, state: BranchState, latents: torch.Tensor, why: str | None) -> bool:
        self._reuses = why is None and not self._scheduled(self._now.call.step)
        return self._log(state, True, why, None)

    def attention(self, layer: int, q: torch.Tensor) -> torch.Tensor | None:
        if not self._reuses or self._now is None:
            return None
        kept = self._recent(layer, q)
        if not kept:
            return None
        self.attention_reused[self._now.call.step, layer, self._now.key] = None
        # Copies, here and where it is kept: a compiled block may use the memory of what it is given again.
        out = self.cache.predict(kept)
        return out.clone() if out is kept[-1] else out

    def _recent(self, layer: int, q: torch.Tensor) -> list[torch.Tensor]:
        """What is kept of a layer, up to a gap: a branch whose calls were left out has nothing recent."""
        step, found = self._now.call.step, []
        for then, tensor in reversed(self._outputs.get((layer, self._now.key), [])):
            # The newest is reused for less than an interval; a computed one before it is at most one older.
            oldest = self.cache.interval if found else self.cache.interval - 1
            if step - then > oldest or tensor.shape[:3] != q.shape[:3]:
                break
            step, found = then, [tensor, *found]
        return found

    def keep_attention(self, layer: int, out: torch.Tensor) -> None:
        if self.cache.interval == 1 or self._now is None:
            return
        kept = self._outputs.setdefault((layer, self._now.key), [])
        step = self._now.call.step
        if kept and kept[-1][0] == step:  # the same forward, run again
            kept.pop()
        kept.append((step, out.detach().clone()))
        del kept[: -self.cache.keeps]

    def _update(self, state: BranchState, latents: list[torch.Tensor], output, call: StepCall) -> None:
        """Nothing is kept of the output: attention was kept layer by layer."""

    def _forget(self, key: Key) -> None:
        super()._forget(key)
        for place in [place for place in self._outputs if place[1] == key]:
            del self._outputs[place]

    def _held(self) -> Iterator[torch.Tensor]:
        yield from super()._held()
        yield from (tensor for kept in self._outputs.values() for _, tensor in kept)

    def release(self) -> None:
        super().release()
        self._outputs.clear()

    def _gained(self, reused: int) -> Iterator[str]:
        if not self.attention_reused and not reused:
            yield "nothing was reused: no step lies within its window"
