"""FasterCache: extrapolate self-attention every other step, and make the unguided branch out of the guided one.

Source: Lv et al., "FasterCache", arXiv 2410.19355. What the branches differ by is kept as one latent; its low
frequencies are raised in the early part of a run and its high ones in the late part, a little more with every step it
is used. diffusers' own hook wants both branches in one batch; here they are the pipeline's own calls, by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.caches.attention import AttentionCache, AttentionReuse, in_window
from dittools.caches.options import option
from dittools.caches.state import BranchState, Shapes, StepCall, Trajectory
from dittools.caches.step_cache import Key


@dataclass(frozen=True)
class FasterCache(AttentionCache):
    """One attention in ``interval``, one unguided branch in ``branch_interval``, both late in the run."""

    name: ClassVar[str] = "fastercache"
    summary: ClassVar[str] = "extrapolate attention, rebuild the unguided branch from the guided one (FasterCache)"
    keeps: ClassVar[int] = 2

    high: float = option(681, "reuse attention below this timestep (of 1000)", kind="number", min=0)
    weight: float = option(0.5, "how far attention is extrapolated", min=0)
    branch_interval: int = option(5, "one unguided branch in so many; 1 computes all", min=1)
    branch_high: float = option(641, "rebuild the branch below this timestep (of 1000)", kind="number", min=0)
    low_gain: float = option(1.1, "on low frequencies of the difference, above timestep 99", min=0)
    high_gain: float = option(1.1, "on high frequencies of the difference, below timestep 301", min=0)

    def never(self) -> bool:
        return self.interval == 1 and self.branch_interval == 1

    def mask(self, run: Trajectory) -> list[bool]:
        return in_window(self.interval, -1, self.high, run)

    def branch_mask(self, run: Trajectory) -> list[bool]:
        """Steps in which the unguided branch is computed."""
        return in_window(self.branch_interval, -1, self.branch_high, run)

    def predict(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        return kept[-1] if len(kept) < 2 else kept[-1] + self.weight * (kept[-1] - kept[-2])

    def begin_run(self, run: Trajectory) -> AttentionReuse:
        return FasterCacheReuse(self, run) if self.branch_interval > 1 else AttentionReuse(self, run)

    def raise_gains(self, state: BranchState, timestep: float | None) -> tuple[float, float]:
        """Factors on (low, high) frequencies of a branch's difference, asked for once at each of its uses in order.

        Published, a use raises what is kept: it counts while the timestep is in the factor's window, and stays until
        the branch is computed. ``state.skips`` are the uses by now, 1 for the first time.
        """
        kept = state.numbers if state.skips > 1 else {}
        low, high = kept.get("low", 1.0), kept.get("high", 1.0)
        if timestep is not None:
            low *= self.low_gain if 99 < timestep < 901 else 1.0
            high *= self.high_gain if -1 < timestep < 301 else 1.0
        state.numbers.update(low=low, high=high)
        return low, high

    def bytes_held(self, shapes: Shapes) -> int:
        # Beside the attention: the guided output of this step, and what the other branch differs by.
        branch = 2 * shapes.latents if self.branch_interval > 1 else 0
        return super().bytes_held(shapes) + shapes.bytes * branch


class FasterCacheReuse(AttentionReuse):
    """FasterCache at work where it also makes the unguided branch out of the guided one.

    What the two branches differ by is kept in the unguided branch's state.

    Args:
        cache: bound to the model.
        run: what is known beforehand.
    """

    cache: FasterCache

    def __init__(self, cache: FasterCache, run: Trajectory):
        super().__init__(cache, run)
        self._branch_mask = cache.branch_mask(run)
        self._guided: tuple[int, torch.Tensor] | None = None  # step and output of the guided branch

    def _decide_call(self, state: BranchState, latents: torch.Tensor, why: str | None) -> bool:
        branch, step = self._now.call.branch, self._now.call.step
        self._reuses = why is None and not self._scheduled(step)
        if state.computed < 0 and _both(branch, latents):
            self.notes["fastercache: both branches come in one batch, so only attention is reused"] = None
        compute = True
        if _unguided(branch):
            compute = self._scheduled(step, self._branch_mask)
            difference = state.tensors.get("difference")
            if not compute and (difference is None or not self._guides(step, difference.shape)):
                compute, why = True, "no guided output in this step"
                self.notes["fastercache: the unguided branch comes first, so it cannot be made of the guided one"] = (
                    None
                )
        return self._log(state, compute or why is not None, why, None)

    def needs_others(self, step: int) -> bool:
        return not self._scheduled(step, self._branch_mask)

    def _guides(self, step: int, shape: torch.Size) -> bool:
        """Whether there is an output of the guided branch in this step, of this shape."""
        return self._guided is not None and self._guided[0] == step and self._guided[1].shape == shape

    def _update(self, state: BranchState, latents: list[torch.Tensor], output, call: StepCall) -> None:
        out = output[0].detach()
        if not _unguided(call.branch):
            self._guided = call.step, out
        elif self._guides(call.step, out.shape):
            state.tensors["difference"] = out - self._guided[1]

    def _predict(self, state: BranchState, latents: list[torch.Tensor], call: StepCall) -> list[torch.Tensor]:
        difference, guided = state.tensors["difference"], self._guided[1]
        low, high = self.cache.raise_gains(state, call.timestep)
        if difference.ndim < 4:
            self.notes["fastercache: latents are packed, so frequencies of the difference are not weighted"] = None
            return [guided + difference]
        return [guided + reweighted(difference, low, high)]

    def _let_go(self, key: Key) -> None:
        super()._let_go(key)
        step = self._now.call.step
        if step < self.run.steps - 1:
            return
        if self._branch_mask[step] or not any(_unguided(branch) for _, branch in self._states):
            self._guided = None

    def _held(self) -> Iterator[torch.Tensor]:
        yield from super()._held()
        if self._guided is not None:
            yield self._guided[1]

    def release(self) -> None:
        super().release()
        self._guided = None


def reweighted(difference: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The difference ``[..., H, W]`` with factors on its low and high frequencies, split a fifth of the side out."""
    height, width = difference.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(difference.float()), dim=(-2, -1))
    radius = min(height, width) // 5
    rows = (torch.arange(height, device=difference.device) - height // 2).square()[:, None]
    columns = (torch.arange(width, device=difference.device) - width // 2).square()[None, :]
    gain = torch.where(rows + columns <= radius**2, low, high)
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * gain, dim=(-2, -1))).real.to(difference.dtype)


def _both(branch: str, latents: torch.Tensor) -> bool:
    """Whether a call is of both branches: each half of the batch has the same latents. Waits for the device."""
    if not {"cond", "uncond"} <= set(branch.partition("#")[0].split("_")) or len(latents) % 2:
        return False
    return torch.equal(*latents.chunk(2))


def _unguided(branch: str) -> bool:
    """Whether this is the branch without the prompt, alone: "uncond", "pred_uncond", not "cond_uncond"."""
    parts = branch.partition("#")[0].split("_")
    return "uncond" in parts and "cond" not in parts
