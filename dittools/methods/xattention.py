"""XAttention: sum the attention map along antidiagonals of small tiles, and keep the blocks that hold most.

Source: Xu et al., "XAttention", arXiv 2503.16428; stride 8 as for video. With ``sparsity`` binding, the threshold that
meets it is found for all heads of the call together; with ``tau`` each row keeps the fewest blocks that hold this
share, and the density is what comes out. Text stays dense here, which the published code does not see to.

What it cannot see: with an even stride an antidiagonal meets only pairs an odd number of tokens apart. A head that
looks at exactly one token an even distance away, with nothing beside it, scores nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.kernels.lists import keep_mass
from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.checks import one_of, share
from dittools.orders.named import ORDERS
from dittools.selectors.antidiagonal import antidiagonal_mass
from dittools.selectors.budget import SCOPES
from dittools.selectors.ordered_blocks import ordered_blocks

STRIDES = (4, 8, 16)


@dataclass(frozen=True)
class XAttention(Method):
    """Order: raster. Selector: antidiagonal sums after softmax. Budget: one cumulative threshold for a layer."""

    name: ClassVar[str] = "xattention"
    summary: ClassVar[str] = "blocks with most mass on a sample of antidiagonals (XAttention)"
    decides: ClassVar[tuple[str, ...]] = ("tau",)

    stride: int = field(default=8, metadata={"help": "tokens between antidiagonals: 4, 8 or 16; costs 1 / stride"})
    scope: str = field(default="layer", metadata={"help": f"who shares a budget: {', '.join(SCOPES)}"})
    tau: float | None = field(default=None, metadata={"help": "share of mass each row keeps, in place of sparsity"})
    order: str = field(default="raster", metadata={"help": f"token order: {', '.join(ORDERS)}"})

    def __post_init__(self):
        if self.stride not in STRIDES or isinstance(self.stride, bool):
            raise ValueError(f"stride must be one of {', '.join(map(str, STRIDES))}, got {self.stride!r}")
        one_of("scope", self.scope, SCOPES)
        share("tau", self.tau)
        one_of("order", self.order, ORDERS)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        mass = antidiagonal_mass(q, k, blocks, call.scale, self.stride)
        if self.tau is not None:
            keep = keep_mass(mass, self.tau) | blocks.force_text
            return block_plan(blocks, keep, f"tau {self.tau:g} decides what is kept, in place of sparsity")
        keep = blocks.spend(mass, call.density, scope=self.scope, ranking="cumulative", force=blocks.force_text)
        return block_plan(blocks, keep)
