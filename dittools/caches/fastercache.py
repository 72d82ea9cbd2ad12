"""FasterCache: extrapolate self-attention every other step, and make the unguided branch out of the guided one.

Source: Lv et al., "FasterCache", arXiv 2410.19355. What the branches differ by is kept as one latent; its low
frequencies are raised in the early part of a run and its high ones in the late part, a little more with every step it
is used. diffusers' own hook wants both branches in one batch; here they are the pipeline's own calls, by name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.caches.attention import AttentionCache, in_window
from dittools.caches.base import Model, Shapes, StepCall, Trajectory, number, whole


@dataclass(frozen=True)
class FasterCache(AttentionCache):
    """One attention in ``interval``, one unguided branch in ``branch_interval``, both late in the run.

    The one cache that remembers: by how much the kept difference of each branch was raised. `bind` gives a fresh one.
    """

    name: ClassVar[str] = "fastercache"
    summary: ClassVar[str] = "extrapolate attention, rebuild the unguided branch from the guided one (FasterCache)"
    keeps: ClassVar[int] = 2

    high: float = field(default=681, metadata={"help": "reuse attention below this timestep (of 1000)"})
    weight: float = field(default=0.5, metadata={"help": "how far attention is extrapolated"})
    branch_interval: int = field(default=5, metadata={"help": "one unguided branch in so many; 1 computes all"})
    branch_high: float = field(default=641, metadata={"help": "rebuild the branch below this timestep (of 1000)"})
    low_gain: float = field(default=1.1, metadata={"help": "on low frequencies of the difference, above timestep 99"})
    high_gain: float = field(
        default=1.1, metadata={"help": "on high frequencies of the difference, below timestep 301"}
    )

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "_raised", {})
        whole("branch_interval", self.branch_interval, 1)
        for name in ("high", "branch_high", "weight", "low_gain", "high_gain"):
            number(name, getattr(self, name), 0)

    def never(self) -> bool:
        return self.interval == 1 and self.branch_interval == 1

    def mask(self, run: Trajectory) -> list[bool]:
        return in_window(self.interval, -1, self.high, run)

    def branch_mask(self, run: Trajectory) -> list[bool]:
        """Steps in which the unguided branch is computed."""
        return in_window(self.branch_interval, -1, self.branch_high, run)

    def stand_in(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        return kept[-1] if len(kept) < 2 else kept[-1] + self.weight * (kept[-1] - kept[-2])

    def bind(self, model: Model) -> FasterCache:
        return dataclasses.replace(self)  # a run's own, with nothing raised yet

    def gains(self, uses: int, call: StepCall) -> tuple[float, float]:
        """Factors on (low, high) frequencies of a branch's difference, asked for once at each of its uses in order.

        Published, a use raises what is kept: it counts while the timestep is in the factor's window, and stays.

        uses: how often the difference has been used by now, 1 for the first time.
        """
        low, high = self._raised.get(call.branch, (1.0, 1.0)) if uses > 1 else (1.0, 1.0)
        t = call.timestep
        low *= self.low_gain if t is not None and 99 < t < 901 else 1.0
        high *= self.high_gain if t is not None and -1 < t < 301 else 1.0
        self._raised[call.branch] = low, high
        return low, high

    def bytes_held(self, shapes: Shapes) -> int:
        # Beside the attention: the guided output of this step, and what the other branch differs by.
        branch = 2 * shapes.latents if self.branch_interval > 1 else 0
        return super().bytes_held(shapes) + shapes.bytes * branch


def reweighted(difference: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The difference ``[..., H, W]`` with factors on its low and high frequencies, split a fifth of the side out."""
    height, width = difference.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(difference.float()), dim=(-2, -1))
    radius = min(height, width) // 5
    rows = (torch.arange(height, device=difference.device) - height // 2).square()[:, None]
    columns = (torch.arange(width, device=difference.device) - width // 2).square()[None, :]
    gain = torch.where(rows + columns <= radius**2, low, high)
    return torch.fft.ifft2(torch.fft.ifftshift(spectrum * gain, dim=(-2, -1))).real.to(difference.dtype)
