"""Re-ttention: give each row back the softmax mass it had when all keys were in it, and what the others brought.

Source: arXiv 2505.22918. Its ratio of softmax sums is the ratio of two LSEs, and its residual, what skipped keys
contribute, is the output over the skipped pairs alone: a refresh computes those, never the same pair twice.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import ClassVar

import torch

from dittools.attention import attend
from dittools.corrections.base import Corrected, Correction, SparseCall


@dataclass(frozen=True)
class Rettention(Correction):
    """``out_t = ratio * sparse_t + residual``, with ratio ``exp(LSE_sparse - LSE_full)`` and residual
    ``full - ratio * sparse`` of the last refresh. In between the plan stays: both belong to its mask.
    """

    name: ClassVar[str] = "rettention"
    summary: ClassVar[str] = "scale rows by the mass they keep and add what was skipped at the last refresh"

    every: int = field(default=5, metadata={"help": "steps from one refresh, which computes all pairs, to the next"})
    ramp: float = field(default=0.0, metadata={"help": "added to the ratio in each step after a refresh, up to 1"})

    def __post_init__(self):
        if isinstance(self.every, bool) or not isinstance(self.every, Integral) or self.every < 1:
            raise ValueError(f"every must be a whole number of at least 1, got {self.every!r}")
        if isinstance(self.ramp, bool) or not isinstance(self.ramp, Real) or not 0 <= self.ramp <= 1:
            raise ValueError(f"ramp must be a number from 0 to 1, got {self.ramp!r}")

    @property
    def keeps_plans(self) -> int:
        return self.every

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
        # exp(a) / (exp(a) + exp(b)), also where one of them is -inf.
        ratio = (done.lse - missed_lse).sigmoid()  # [B, H, S]
        residual = _rows(1 - ratio) * missed
        done.state.update(ratio=ratio, residual=residual.to(missed.dtype))
        notes = (f"rettention: one sparse step in {self.every} computed all pairs and counts as dense",)
        return Corrected((_rows(ratio) * done.out + residual).to(done.out.dtype), dense=True, notes=notes)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """A factor for each row, ``[B, H, S]``, to multiply ``[B, S, H, D]``."""
    return x.transpose(1, 2)[..., None]
