"""DraftAttention: look at a small picture of the attention map, and compute in full only where it is bright.

Source: Shen et al., "DraftAttention", arXiv 2505.14708. Patches of one frame, as many tokens as a block holds, are
averaged, and softmax over these averages is the draft. The published code needs grids that 8 x 16 divides; here any
grid does (patches at the edges are cut, so later blocks start inside a patch). Its threshold over a whole head can
leave a query nothing; here the diagonal always stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import order_option, scope_option
from dittools.selection.ordered_blocks import ordered_blocks
from dittools.selection.pooled import block_softmax, pooled_logits


@dataclass(frozen=True)
class Draft(Method):
    """Order: 2-D patches. Selector: softmax of pooled queries and keys. Budget: one a head, text and diagonal first."""

    name: ClassVar[str] = "draft"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "brightest blocks of a pooled attention map, in 2-D patches (DraftAttention)"
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    scope: str = scope_option("head")
    order: str = order_option("patches")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        draft = block_softmax(pooled_logits(q, k, blocks, call.scale), blocks)
        keep = blocks.select_topk(draft, call.density, scope=self.scope, heads=call.heads, force=blocks.force)
        return block_plan(blocks, keep)
