"""EasyCache: learn while sampling how much the output moves with the latents, and reuse while that is little.

Source: Zhou et al., "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching",
arXiv 2507.02860. It looks at nothing but the transformer's input and output, so it fits every model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.caches.base import ThresholdCache
from dittools.caches.options import max_skips_option, threshold_option, warmup_option
from dittools.caches.state import BranchState, Shapes, StepCall


@dataclass(frozen=True)
class EasyCache(ThresholdCache):
    """Signal: change of the latents since the last call, times the learnt rate, over the size of the output."""

    name: ClassVar[str] = "easycache"
    summary: ClassVar[str] = "learn while sampling how fast the output moves, reuse while it does not (EasyCache)"
    signal_source: ClassVar[str] = "latents"

    threshold: float = threshold_option(0.05)
    warmup_steps: float | int = warmup_option(0.2)
    max_consecutive_skips: int = max_skips_option(6)

    def signal(self, state: BranchState, seen: torch.Tensor, call: StepCall) -> float | None:
        before, state.tensors["latents_before"] = state.tensors.get("latents_before"), seen.detach().clone()
        if before is None or before.shape != seen.shape or "rate" not in state.numbers:
            return None
        moved = float((seen.float() - before.float()).abs().mean())
        return state.numbers["rate"] * moved / state.numbers["size"] if state.numbers["size"] else float("nan")

    def learn(self, state: BranchState, latents: torch.Tensor, output: torch.Tensor) -> None:
        if "latents_before" not in state.tensors:
            return  # another branch decides, and this one need hold no more than what it reuses
        now, out = latents.detach().clone(), output.detach().clone()
        if "output" in state.tensors:
            moved = float((now.float() - state.tensors["latents"].float()).abs().mean())
            changed = float((out.float() - state.tensors["output"].float()).abs().mean())
            if moved > 0:
                state.numbers["rate"] = changed / moved
        state.numbers["size"] = float(out.float().abs().mean())
        state.tensors |= {"latents": now, "output": out, "latents_before": now}

    def bytes_held(self, shapes: Shapes) -> int:
        # The deciding branch holds its last computed latents and output, and its last latents.
        return super().bytes_held(shapes) + shapes.bytes * 3 * shapes.latents
