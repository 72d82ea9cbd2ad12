"""Re-ttention: give each row back the softmax mass it had when all keys were in it, and what the others brought.

Source: arXiv 2505.22918. Its ratio of softmax sums is the ratio of two LSEs, and its residual, what skipped keys
contribute, is the output over the skipped pairs alone: a refresh computes those, never the same pair twice.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.attention import attend
from dittools.corrections.base import Corrected, Correction, SparseCall
from dittools.kernels.attn_merge import merge_share
from dittools.options import option


@dataclass(frozen=True)
class Rettention(Correction):
    """``out_t = ratio * sparse_t + residual``, with ratio ``exp(LSE_sparse - LSE_full)`` and residual
    ``full - ratio * sparse`` of the last refresh. In between the plan stays: both belong to its mask.
    """

    name: ClassVar[str] = "rettention"
    summary: ClassVar[str] = "scale rows by the mass they keep and add what was skipped at the last refresh"

    every: int = option(5, "steps from one refresh, which computes all pairs, to the next", min=1)
    ramp: float = option(0.0, "added to the ratio in each step after a refresh, up to 1", min=0, max=1)

    @property
    def keeps_plans(self) -> int:
        return self.every

    def reads(self, fresh: bool) -> tuple[str, ...]:
        return ("k", "v") if fresh else ()

    def correct(self, done: SparseCall) -> Corrected:
        if done.fresh or not done.state:
            return self.refresh(done)
        done.state["ratio"] = (done.state["ratio"] + self.ramp).clamp_max(1)
        out = _rows(done.state["ratio"]) * done.out + done.state["residual"]
        return Corrected(out.to(done.out.dtype))

    def refresh(self, done: SparseCall) -> Corrected:
        """The exact output, and what later steps need of it."""
        mask = dataclasses.replace(done.plan.mask, keep=~done.plan.mask.keep)
        skipped = dataclasses.replace(done.plan, mask=mask)
        missed, missed_lse = attend(done.q, done.k, done.v, skipped, done.call.scale, return_lse=True)
        # The two terms of `dittools.kernels.merge`, apart: later steps need each of them.
        ratio = merge_share(done.lse, missed_lse)  # [B, H, S]
        residual = _rows(1 - ratio) * missed
        done.state.update(ratio=ratio, residual=residual.to(missed.dtype))
        notes = (f"rettention: one sparse step in {self.every} computed all pairs and counts as dense",)
        return Corrected((_rows(ratio) * done.out + residual).to(done.out.dtype), dense=True, notes=notes)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """A factor for each row, ``[B, H, S]``, to multiply ``[B, S, H, D]``."""
    return x.transpose(1, 2)[..., None]
