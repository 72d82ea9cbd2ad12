"""AdaSpa: measure where the mass is at a few steps, and use what was found in between.

Source: Xia et al., "AdaSpa", arXiv 2502.21079. A search sums softmax weights over blocks, exactly; the mask is a top-k
of every row, with more blocks for heads that need more. Searches after the first use the log-sum-exp cached then,
which halves their cost (4 bytes a token, head, layer and branch). Searches come at 0.2 and 0.6 of the run, the first
at the latest in the first sparse step. A cached log-sum-exp that the logits have outgrown is measured again, in the
search that finds it so: masses from it would overflow, or weigh rows of a block by how much they grew. Departures:
that first search is no part of a dense pass, so its step runs
sparse like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import option, order_option, scope_option
from dittools.selection.measured import block_mass, row_lse, sums_to_one
from dittools.selection.ordered_blocks import ordered_blocks
from dittools.selection.packed import pack_bits, unpack_bits


@dataclass(frozen=True)
class AdaSpa(Method):
    """Order: raster. Selector: measured block mass at search steps. Budget: rows alike, heads in three levels."""

    name: ClassVar[str] = "adaspa"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "block mass measured at a few steps, budgets by head (AdaSpa)"
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    search_at: Sequence[float] = option((0.2, 0.6), "when to search, as shares of the run", kind="shares")
    reuse_lse: bool = option(True, "later searches use the log-sum-exp of the first")
    rows: int = option(0, "queries of each block that a search looks at; 0: all", min=0)
    scope: str = scope_option("adaptive")
    order: str = order_option("raster")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        if self.searches(call, q.shape):
            mass = self.mass(q, k, blocks, call)
            keep = blocks.select_topk(mass, call.density, scope=self.scope, heads=call.heads, force=blocks.force_text)
            call.branch_state.update(keep=pack_bits(keep), searched=call.step, shape=q.shape)
        keep = unpack_bits(call.branch_state["keep"], blocks.partition.count)
        return block_plan(blocks, keep)

    def searches(self, call: AttentionCall, shape: torch.Size) -> bool:
        """Whether this call searches: nothing was found yet, or a search step came since."""
        if call.branch_state.get("shape") != shape:
            return True
        return any(call.branch_state["searched"] < int(t * call.steps + 0.5) <= call.step for t in self.search_at)

    def asks_others(self, q: torch.Tensor, call: AttentionCall) -> bool:
        return self.searches(call, q.shape)

    def mass(self, q, k, blocks, call: AttentionCall) -> torch.Tensor:
        """What a search finds, from the log-sum-exp of an earlier one where that still fits."""
        if not self.reuse_lse or self.rows:
            return block_mass(q, k, blocks, call.scale, rows=self.rows)
        lse = call.branch_state.get("lse") if call.branch_state.get("shape") == q.shape else None
        if lse is not None:
            mass = block_mass(q, k, blocks, call.scale, lse=lse)
            # Waits for the device, once a layer and later search: runs have one of these.
            if call.heads.every(sums_to_one(mass)):
                return mass
        call.branch_state["lse"] = row_lse(q, k, blocks, call.scale)
        return block_mass(q, k, blocks, call.scale, lse=call.branch_state["lse"])
