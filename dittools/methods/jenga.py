"""Jenga: along a curve that keeps near tokens near, every block sees its neighbours and the blocks that matter most.

Source: Zhang et al., "Jenga" (AttenCarve), arXiv 2505.16864. With ``sparsity`` binding, neighbours come out of the
budget and take at most half of it, nearest first. With ``top_p`` the published rule holds: the larger of top-k (k from
``sparsity``) and top-p, and neighbours on top, so the density is what comes out. ``first_frame`` is the fix that the
authors needed for Wan: blocks of the first frame see each other. Drop rates that rise from step to
step, skipped steps and growing resolution are not part of the attention and not here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.kernels.block_sparse.lists import keep_mass
from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import option, order_option, scope_option, share_option
from dittools.selection.neighbours import affordable, contact, same_frame, touching
from dittools.selection.ordered_blocks import OrderedBlocks, ordered_blocks
from dittools.selection.pooled import block_softmax, pooled_logits


@dataclass(frozen=True)
class Jenga(Method):
    """Order: space-filling curve. Selector: pooled softmax and the 26 neighbours. Budget: the same for every row."""

    name: ClassVar[str] = "jenga"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "neighbours and best pooled blocks along a space-filling curve (Jenga)"
    decides: ClassVar[tuple[str, ...]] = ("top_p",)
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    scope: str = scope_option("row")
    top_p: float | None = share_option("share of pooled softmax to reach; sparsity then caps what top-k drops")
    first_frame: bool = option(False, "blocks of the first frame all see each other")
    order: str = order_option("curve")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        budget = call.density if self.top_p is None else 1
        near, notes = call.run_cache.get_or_make(
            ("jenga", self.order, budget, q.device),
            lambda: affordable(self.nearness(call, blocks), blocks, budget),
        )
        scores = block_softmax(pooled_logits(q, k, blocks, call.scale), blocks)
        if self.top_p is not None:
            keep = keep_mass(scores, self.top_p, min_share=call.density) | near
            return block_plan(blocks, keep, f"top_p {self.top_p:g} and neighbours add to what sparsity would keep")
        keep = blocks.select_topk(scores, call.density, scope=self.scope, heads=call.heads, force=near)
        return block_plan(blocks, keep, *notes)

    def nearness(self, call: AttentionCall, blocks: OrderedBlocks) -> torch.Tensor:
        """How much blocks touch; those of the first frame a little, where asked."""
        touch = contact(call.grid, blocks, touching())
        return touch + 1e-6 * same_frame(call.grid, blocks, 0) if self.first_frame else touch
