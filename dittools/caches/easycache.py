"""EasyCache: learn while sampling how much the output moves with the latents, and reuse while that is little.

Source: Zhou et al., "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching",
arXiv 2507.02860. It looks at nothing but the transformer's input and output, so it fits every model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.caches.base import Lane, Shapes, StepCall, ThresholdCache


@dataclass(frozen=True)
class EasyCache(ThresholdCache):
    """Signal: change of the latents since the last call, times the learnt rate, over the size of the output."""

    name: ClassVar[str] = "easycache"
    summary: ClassVar[str] = "learn while sampling how fast the output moves, reuse while it does not (EasyCache)"
    watches: ClassVar[str] = "latents"

    threshold: float = field(default=0.05, metadata={"help": "how much may change before a step is computed; 0: none"})
    first: float | int = field(default=0.2, metadata={"help": "steps at the start always computed, a share or a count"})
    max_skips: int = field(default=6, metadata={"help": "most steps reused in a row; 0: no limit"})

    def signal(self, lane: Lane, seen: torch.Tensor, call: StepCall) -> float | None:
        before, lane.tensors["latents_before"] = lane.tensors.get("latents_before"), seen.detach().clone()
        if before is None or before.shape != seen.shape or "rate" not in lane.numbers:
            return None
        moved = float((seen.float() - before.float()).abs().mean())
        return lane.numbers["rate"] * moved / lane.numbers["size"] if lane.numbers["size"] else float("nan")

    def learn(self, lane: Lane, latents: torch.Tensor, output: torch.Tensor) -> None:
        if "latents_before" not in lane.tensors:
            return  # another branch decides, and this one need hold no more than what it reuses
        now, out = latents.detach().clone(), output.detach().clone()
        if "output" in lane.tensors:
            moved = float((now.float() - lane.tensors["latents"].float()).abs().mean())
            changed = float((out.float() - lane.tensors["output"].float()).abs().mean())
            if moved > 0:
                lane.numbers["rate"] = changed / moved
        lane.numbers["size"] = float(out.float().abs().mean())
        lane.tensors |= {"latents": now, "output": out, "latents_before": now}

    def bytes_held(self, shapes: Shapes) -> int:
        # The deciding branch holds its last computed latents and output, and its last latents.
        return super().bytes_held(shapes) + shapes.bytes * 3 * shapes.latents
