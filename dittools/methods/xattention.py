"""XAttention: sum the attention map along antidiagonals of small tiles, and keep the blocks that hold most.

Source: Xu et al., "XAttention", arXiv 2503.16428; stride 8 as for video. With ``sparsity`` binding, the threshold that
meets it is found for all heads of the call together; with ``tau`` each row keeps the fewest blocks that hold this
share, and the density is what comes out. Text stays dense here, which the published code does not see to.

What it cannot see: with an even stride an antidiagonal meets only pairs an odd number of tokens apart. A head that
looks at exactly one token an even distance away, with nothing beside it, scores nothing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.kernels.antidiagonal.dispatch import measure_antidiagonals
from dittools.kernels.block_sparse.lists import keep_mass
from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import option, order_option, scope_option, share_option
from dittools.selection.ordered_blocks import ordered_blocks

STRIDES = (4, 8, 16)


@dataclass(frozen=True)
class XAttention(Method):
    """Order: raster. Selector: antidiagonal sums after softmax. Budget: one cumulative threshold for a layer."""

    name: ClassVar[str] = "xattention"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "blocks with most mass on a sample of antidiagonals (XAttention)"
    decides: ClassVar[tuple[str, ...]] = ("tau",)
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    stride: int = option(8, "tokens between antidiagonals; costs 1 / stride", choices=STRIDES)
    scope: str = scope_option("layer")
    tau: float | None = share_option("share of mass each row keeps, in place of sparsity")
    order: str = order_option("raster")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        mass = measure_antidiagonals(q, k, blocks.partition, self.stride, scale=call.scale, order=blocks.order)
        if self.tau is not None:
            keep = keep_mass(mass, self.tau) | blocks.force_text
            return block_plan(blocks, keep, f"tau {self.tau:g} decides what is kept, in place of sparsity")
        keep = blocks.select_topk(
            mass, call.density, scope=self.scope, heads=call.heads, ranking="cumulative", force=blocks.force_text
        )
        return block_plan(blocks, keep)
