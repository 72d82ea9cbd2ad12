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
from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.checks import flag, one_of, whole
from dittools.orders.named import ORDERS
from dittools.selectors.budget import SCOPES
from dittools.selectors.measured import block_mass, row_lse, sums_to_one
from dittools.selectors.ordered_blocks import ordered_blocks
from dittools.selectors.packed import pack_bits, unpack_bits


@dataclass(frozen=True)
class AdaSpa(Method):
    """Order: raster. Selector: measured block mass at search steps. Budget: rows alike, heads in three levels."""

    name: ClassVar[str] = "adaspa"
    summary: ClassVar[str] = "block mass measured at a few steps, budgets by head (AdaSpa)"

    search_at: Sequence[float] = field(default=(0.2, 0.6), metadata={"help": "when to search, as shares of the run"})
    reuse_lse: bool = field(default=True, metadata={"help": "later searches use the log-sum-exp of the first"})
    rows: int = field(default=0, metadata={"help": "queries of each block that a search looks at; 0: all"})
    scope: str = field(default="adaptive", metadata={"help": f"who shares a budget: {', '.join(SCOPES)}"})
    order: str = field(default="raster", metadata={"help": f"token order: {', '.join(ORDERS)}"})

    def __post_init__(self):
        times = self.search_at
        if isinstance(times, str) or not isinstance(times, Sequence) or not all(_is_share(t) for t in times):
            raise ValueError(f"search_at must be shares of the run in [0, 1], for example [0.2, 0.6], got {times!r}")
        object.__setattr__(self, "search_at", tuple(times))
        flag("reuse_lse", self.reuse_lse)
        whole("rows", self.rows, 0)
        one_of("scope", self.scope, SCOPES)
        one_of("order", self.order, ORDERS)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        if self.searches(call, q.shape):
            mass = self.mass(q, k, blocks, call)
            keep = blocks.spend(mass, call.density, scope=self.scope, force=blocks.force_text)
            call.state.update(keep=pack_bits(keep), searched=call.step, shape=q.shape)
        keep = unpack_bits(call.state["keep"], blocks.partition.count)
        return block_plan(blocks, keep)

    def searches(self, call: AttentionCall, shape: torch.Size) -> bool:
        """Whether this call searches: nothing was found yet, or a search step came since."""
        if call.state.get("shape") != shape:
            return True
        return any(call.state["searched"] < int(t * call.steps + 0.5) <= call.step for t in self.search_at)

    def mass(self, q, k, blocks, call: AttentionCall) -> torch.Tensor:
        """What a search finds, from the log-sum-exp of an earlier one where that still fits."""
        if not self.reuse_lse or self.rows:
            return block_mass(q, k, blocks, call.scale, rows=self.rows)
        lse = call.state.get("lse") if call.state.get("shape") == q.shape else None
        if lse is not None:
            mass = block_mass(q, k, blocks, call.scale, lse=lse)
            # Waits for the device, once a layer and later search: runs have one of these.
            if sums_to_one(mass):
                return mass
        call.state["lse"] = row_lse(q, k, blocks, call.scale)
        return block_mass(q, k, blocks, call.scale, lse=call.state["lse"])


def _is_share(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and 0 <= value <= 1
