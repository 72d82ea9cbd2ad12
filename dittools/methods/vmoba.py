"""VMoBA: keys are gated by the mean of their chunk, and chunks change with depth: along time, in space, in both.

Source: Wu et al., "VMoBA", arXiv 2506.23858. Faithful: the cycle 1-D, 2-D, 3-D by layer; the gate, a bare product of a
query with the fp32 mean of a chunk's keys, no scale and no softmax; the own chunk first; budgets by query or by head.
Adapted: a chunk is a block of the kernel, so it holds 64 or 128 tokens, and a query block gates by the mean of its
queries. The 1-D chunk is a run of raster positions, the 2-D one a few patches through all frames.

The paper trains with one pool a head ("global"). Bare products put some queries above all others, though: without
training such a pool starved the rest, and on the embedded model the output came little nearer to dense than with random
blocks. So queries share evenly here unless ``scope`` says "head".

With ``tau``, gates are min-max normalised within the scope and blocks added, best first, until they hold this share of
the sum, at least one beside the own; the density is what comes out. The method was made for training: without it,
expect less fidelity than from methods that score by softmax.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import scope_option, share_option
from dittools.selection.nucleus import min_max_nucleus
from dittools.selection.ordered_blocks import ordered_blocks
from dittools.selection.pooled import pooled_logits

CYCLE = ("raster", "columns", "cubes")
SCOPES = ("row", "head", "layer")


@dataclass(frozen=True)
class VMoBA(Method):
    """Order: 1-D, 2-D or 3-D chunks by layer. Selector: key means gated by queries. Budget: the same for every row."""

    name: ClassVar[str] = "vmoba"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "means of key chunks, in 1-D, 2-D and 3-D chunks by turns of layers (VMoBA)"
    decides: ClassVar[tuple[str, ...]] = ("tau",)
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    scope: str = scope_option("row", SCOPES)
    tau: float | None = share_option("share of normalised gates to keep, in place of sparsity; published: 0.25")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, CYCLE[call.layer % 3])
        gate = pooled_logits(q, k, blocks, scale=1)
        if self.tau is not None:
            keep = min_max_nucleus(gate, self.tau, self.scope, blocks.force, call.heads)
            return block_plan(blocks, keep, f"tau {self.tau:g} decides what is kept, in place of sparsity")
        keep = blocks.select_topk(gate, call.density, scope=self.scope, heads=call.heads, force=blocks.force)
        return block_plan(blocks, keep)
