"""First-block cache: run the first block, and the others only when what it added has changed.

Source: the first-block cache of ParaAttention, written from its description. Published, what the other blocks added
is kept: as large as all tokens. Here the transformer's output is, and of the first block's addition a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.caches.base import Lane, Shapes, StepCall, ThresholdCache, relative_change, whole


@dataclass(frozen=True)
class FirstBlock(ThresholdCache):
    """Signal: relative change of the first block's residual since the last computed step. It does not add up."""

    name: ClassVar[str] = "first_block"
    summary: ClassVar[str] = "run the first block, reuse the rest while it adds the same (first-block cache)"
    watches: ClassVar[str] = "block_output"
    adds_up: ClassVar[bool] = False

    threshold: float = field(default=0.08, metadata={"help": "how much may change before a step is computed; 0: none"})
    max_skips: int = field(default=4, metadata={"help": "most steps reused in a row; 0: no limit"})
    sample: int = field(default=8, metadata={"help": "of so many tokens, one is compared; 1: all"})

    def __post_init__(self):
        super().__post_init__()
        whole("sample", self.sample, 1)

    def signal(self, lane: Lane, seen: torch.Tensor, call: StepCall) -> float | None:
        """``seen`` is the residual ``[B, S, width]``. Compared with that of the last computed step."""
        lane.tensors["fresh"] = seen[:, :: self.sample].detach().clone()
        before = lane.tensors.get("residual")
        if before is None or before.shape != lane.tensors["fresh"].shape:
            return None
        return relative_change(lane.tensors["fresh"], before)

    def learn(self, lane: Lane, latents: torch.Tensor, output: torch.Tensor) -> None:
        if "fresh" in lane.tensors:
            lane.tensors["residual"] = lane.tensors.pop("fresh")

    def stand_in(self, lane: Lane, latents: Sequence[torch.Tensor], call: StepCall) -> list[torch.Tensor]:
        lane.tensors.pop("fresh", None)
        return super().stand_in(lane, latents, call)

    def bytes_held(self, shapes: Shapes) -> int:
        return super().bytes_held(shapes) + shapes.bytes * -(-shapes.tokens // self.sample) * shapes.width
