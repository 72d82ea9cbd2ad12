"""First-block cache: run the first block, and the others only when what it added has changed.

Source: the first-block cache of ParaAttention, written from its description. Published, what the other blocks added
is kept: as large as all tokens. Here the transformer's output is, and of the first block's addition a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.caches.base import ThresholdCache, relative_change
from dittools.caches.options import max_skips_option, option, threshold_option
from dittools.caches.state import BranchState, Shapes, StepCall


@dataclass(frozen=True)
class FirstBlock(ThresholdCache):
    """Signal: relative change of the first block's residual since the last computed step. It does not add up."""

    name: ClassVar[str] = "first_block"
    summary: ClassVar[str] = "run the first block, reuse the rest while it adds the same (first-block cache)"
    signal_source: ClassVar[str] = "block_output"
    adds_up: ClassVar[bool] = False

    threshold: float = threshold_option(0.08)
    max_consecutive_skips: int = max_skips_option(4)
    sample: int = option(8, "of so many tokens, one is compared; 1: all", min=1)

    def signal(self, state: BranchState, seen: torch.Tensor, call: StepCall) -> float | None:
        """``seen`` is the residual ``[B, S, width]``. Compared with that of the last computed step."""
        state.tensors["fresh"] = seen[:, :: self.sample].detach().clone()
        return relative_change(state.tensors["fresh"], state.tensors.get("residual"))

    def learn(self, state: BranchState, latents: torch.Tensor, output: torch.Tensor) -> None:
        if "fresh" in state.tensors:
            state.tensors["residual"] = state.tensors.pop("fresh")

    def predict(self, state: BranchState, latents: Sequence[torch.Tensor], call: StepCall) -> list[torch.Tensor]:
        state.tensors.pop("fresh", None)
        return super().predict(state, latents, call)

    def bytes_held(self, shapes: Shapes) -> int:
        return super().bytes_held(shapes) + shapes.bytes * -(-shapes.tokens // self.sample) * shapes.width
