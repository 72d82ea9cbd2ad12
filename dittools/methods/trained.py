"""Trained: the block mask that a model brings itself, because it was trained with one.

Source: Kandinsky 5's NABLA checkpoints as diffusers runs them (Mikhailov et al., "NABLA", arXiv 2507.13546): each layer
makes its mask from its own queries and keys and hands it to flex attention. Here that very mask runs on the sparse
kernels. The model has no dense attention, so neither dense steps nor dense layers apply to these calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, StayDense
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class Trained(Method):
    """Order: the model's own. Selector: the model's own mask. Budget: what that keeps, whatever the sparsity."""

    name: ClassVar[str] = "trained"
    knows_heads: ClassVar[bool] = True
    takes_own: ClassVar[bool] = True
    summary: ClassVar[str] = "the block mask that a model trained with one brings itself (Kandinsky 5 with NABLA)"
    reads: ClassVar[tuple[str, ...]] = ()

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan | StayDense:
        if call.own is None:
            return StayDense("the model brings no block mask of its own")
        return Plan(None, call.own)

    def asked(self, call: AttentionCall) -> None:
        return None

    def asks_others(self, q: torch.Tensor, call: AttentionCall) -> bool:
        return False

    def why_not(self, grid: TokenGrid, block_size: int) -> None:
        return None
