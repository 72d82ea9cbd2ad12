"""SparseD: measure where the mass is once, in the first sparse step, and keep that mask to the end.

Source: Wang et al., "SparseD", arXiv 2509.24014, made for language diffusion: the early steps stay dense
(``dense_steps``), then each row keeps its heaviest key blocks for the rest of the run. Its separate budgets for prompt
and answer are here dense text and a budget for video. Departure: the step that measures already runs sparse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import option, order_option, scope_option
from dittools.selection.measured import block_mass
from dittools.selection.ordered_blocks import ordered_blocks
from dittools.selection.packed import pack_bits, unpack_bits


@dataclass(frozen=True)
class SparseD(Method):
    """Order: raster. Selector: measured block mass, once a run. Budget: the same for every row."""

    name: ClassVar[str] = "sparsed"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "block mass measured once and kept to the end of the run (SparseD)"
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    scope: str = scope_option("row")
    rows: int = option(0, "queries of each block that are looked at; 0: all", min=0)
    order: str = order_option("raster")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        if call.branch_state.get("shape") != q.shape:
            mass = block_mass(q, k, blocks, call.scale, rows=self.rows)
            keep = blocks.select_topk(mass, call.density, scope=self.scope, heads=call.heads, force=blocks.force_text)
            call.branch_state.update(keep=pack_bits(keep), shape=q.shape)
        keep = unpack_bits(call.branch_state["keep"], blocks.partition.count)
        return block_plan(blocks, keep)
