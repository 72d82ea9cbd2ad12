"""SparseD: measure where the mass is once, in the first sparse step, and keep that mask to the end.

Source: Wang et al., "SparseD", arXiv 2509.24014, made for language diffusion: the early steps stay dense
(``dense_steps``), then each row keeps its heaviest key blocks for the rest of the run. Its separate budgets for prompt
and answer are here dense text and a budget for video. Departure: the step that measures already runs sparse.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.checks import one_of, whole
from dittools.orders.named import ORDERS
from dittools.selectors.budget import SCOPES
from dittools.selectors.measured import block_mass
from dittools.selectors.ordered_blocks import ordered_blocks
from dittools.selectors.packed import pack_bits, unpack_bits


@dataclass(frozen=True)
class SparseD(Method):
    """Order: raster. Selector: measured block mass, once a run. Budget: the same for every row."""

    name: ClassVar[str] = "sparsed"
    summary: ClassVar[str] = "block mass measured once and kept to the end of the run (SparseD)"

    scope: str = field(default="row", metadata={"help": f"who shares a budget: {', '.join(SCOPES)}"})
    rows: int = field(default=0, metadata={"help": "queries of each block that are looked at; 0: all"})
    order: str = field(default="raster", metadata={"help": f"token order: {', '.join(ORDERS)}"})

    def __post_init__(self):
        one_of("scope", self.scope, SCOPES)
        whole("rows", self.rows, 0)
        one_of("order", self.order, ORDERS)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        if call.state.get("shape") != q.shape:
            mass = block_mass(q, k, blocks, call.scale, rows=self.rows)
            keep = blocks.spend(mass, call.density, scope=self.scope, force=blocks.force_text)
            call.state.update(keep=pack_bits(keep), shape=q.shape)
        keep = unpack_bits(call.state["keep"], blocks.partition.count)
        return block_plan(blocks, keep)
