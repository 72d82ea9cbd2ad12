"""SEA: how far the picture in the latents has moved, with the noise filtered out.

Source: Chung et al., "SeaCache: Spectral-Evolution-Aware Cache", arXiv 2602.18993. A natural picture's power falls
with frequency as ``1 / f ** power``; the Wiener filter for that prior, at the step's noise level, leaves what is
known of the picture by now. The change of that is summed, without coefficients fitted to a model. As diffusers has
it for video, the filter sees the latents, so no block is touched. The prior is of the distance from frequency 0, not a
product over the axes, and the gains are not brought to a mean of 1 as diffusers' are: equal thresholds mean about
equal schedules, not equal signals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.caches.base import ThresholdCache, relative_change
from dittools.caches.options import max_skips_option, option, threshold_option
from dittools.caches.state import BranchState, Shapes, StepCall

NEARLY = 1e-6
"""Nearest that a noise level comes to none or all: of noise alone the filter would leave nothing to compare with."""


@dataclass(frozen=True)
class Sea(ThresholdCache):
    """Signal: relative change of the Wiener-filtered latents since the last call."""

    name: ClassVar[str] = "sea"
    summary: ClassVar[str] = "reuse while the picture in the filtered latents does not move (SeaCache)"
    signal_source: ClassVar[str] = "latents"
    needs_noise: ClassVar[bool] = True

    threshold: float = threshold_option(0.25)
    max_consecutive_skips: int = max_skips_option(2)
    power: float = option(3.0, "how fast a picture's power falls with frequency", min=0)

    def signal(self, state: BranchState, seen: torch.Tensor, call: StepCall) -> float | None:
        if call.noise is None:
            return None
        picture = wiener(seen.detach(), min(max(call.noise, NEARLY), 1 - NEARLY), self.power)
        before, state.tensors["picture"] = state.tensors.get("picture"), picture.to(seen.dtype)
        return relative_change(state.tensors["picture"], before)

    def learn(self, state: BranchState, latents: torch.Tensor, output: torch.Tensor) -> None:
        if "picture" in state.tensors:  # the filter mixes no channels
            state.tensors["picture"] = state.tensors["picture"][:, : latents.shape[1]].clone()

    def bytes_held(self, shapes: Shapes) -> int:
        return super().bytes_held(shapes) + shapes.bytes * shapes.latents


def wiener(latents: torch.Tensor, noise: float, power: float) -> torch.Tensor:
    """The part of noisy latents that is picture, fp32, same shape.

    Args:
        latents: ``[B, C, ..., H, W]``, or packed tokens ``[B, C, S]``; filtered over all axes from the third on.
        noise: their share of noise s in [0, 1]: latents are (1 - s) picture + s noise.
        power: of the prior ``1 / f ** power``.
    """
    axes = tuple(range(2, latents.ndim))
    spectrum = torch.fft.fftn(latents.float(), dim=axes)
    squared = torch.zeros((), device=latents.device)
    for axis in axes:
        f = torch.fft.fftfreq(latents.shape[axis], device=latents.device)
        squared = squared + f.square().view([-1 if dim == axis else 1 for dim in range(latents.ndim)])
    # At frequency 0 the prior has no end; the lowest frequency there is stands in for it.
    lowest = 1.0 / max(latents.shape[axis] for axis in axes)
    prior = squared.sqrt().clamp(min=lowest) ** -power
    signal = 1 - noise
    gain = signal * prior / (signal**2 * prior + noise**2).clamp(min=1e-12)
    return torch.fft.ifftn(spectrum * gain, dim=axes).real
