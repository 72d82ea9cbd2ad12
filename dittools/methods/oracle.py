"""A yardstick: the blocks that really hold most of the mass, measured in every call at more than dense cost.

Scope "layer" keeps the most mass that any choice of blocks in this order can. It takes it from rows whose mass is
spread thin, though, and those then err most: for the output, rows that share evenly came nearer to dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import order_option, scope_option
from dittools.selection.measured import block_mass
from dittools.selection.ordered_blocks import ordered_blocks


@dataclass(frozen=True)
class Oracle(Method):
    """Order: raster. Selector: true block mass. Budget: the same for every row."""

    name: ClassVar[str] = "oracle"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "yardstick, slower than dense: the blocks that truly hold most mass"
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    scope: str = scope_option("row")
    order: str = order_option("raster")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        mass = block_mass(q, k, blocks, call.scale)
        keep = blocks.select_topk(mass, call.density, scope=self.scope, heads=call.heads, force=blocks.force_text)
        return block_plan(blocks, keep)
