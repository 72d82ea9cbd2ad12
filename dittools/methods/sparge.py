"""SpargeAttn: trust pooled scores where the tokens of a block are alike, and keep blocks where they are not.

Source: Zhang et al., "SpargeAttn", arXiv 2502.18137. Keys are centred, blocks averaged, softmax skips key blocks whose
tokens differ (mean cosine at most ``similarity``; of keys less their mean, as there: one vector added to all keys
changes no attention, and no mask here). With ``tau`` the published rule holds: blocks whose cumulative share stays
within tau, at least one a row, and all rows and columns of blocks that differ. With ``sparsity`` binding (its top-k
mode) those come first as long as the budget lasts; at its default, -0.1, there are none: a mean over all pairs of a
block is never negative.

Left out: the second filter, which skips P V where a block's largest logit is far below the running maximum. It needs
the products themselves, so only a kernel can apply it; at its published default (2^-50) it changes nothing. Also left
out for now: 8-bit products.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import option, order_option, scope_option, share_option
from dittools.selection.nucleus import within_mass
from dittools.selection.ordered_blocks import ordered_blocks
from dittools.selection.pooled import block_softmax, centred, mean_logits, pool
from dittools.selection.self_similarity import means_and_similarity


@dataclass(frozen=True)
class Sparge(Method):
    """Order: raster, or a curve. Selector: pooled softmax with a similarity gate. Budget: the same for every row."""

    name: ClassVar[str] = "sparge"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "pooled scores, trusted where the tokens of a block are alike (SpargeAttn)"
    decides: ClassVar[tuple[str, ...]] = ("tau",)
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    similarity: float | str = option(
        "auto",
        "least mean cosine in a block to trust its pooling; auto: -0.1, 0.6 with tau",
        kind="number",
        min=-1,
        max=1,
    )
    tau: float | None = share_option("cumulative share each row keeps, in place of sparsity")
    sink: bool = option(False, "keep the first key block for every query")
    scope: str = scope_option("row")
    order: str = order_option("raster")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        gate = self.similarity if self.similarity != "auto" else -0.1 if self.tau is None else 0.6
        if gate < 0:
            scores = block_softmax(mean_logits(pool(q, blocks), centred(pool(k, blocks), blocks), call.scale), blocks)
            mixed = 0
        else:
            queries, alike_q = means_and_similarity(q, blocks)
            keys, alike_k = means_and_similarity(k, blocks, centre=True)
            mixed_q, mixed_k = alike_q <= gate, alike_k <= gate  # [B, H, M]
            scores = block_softmax(mean_logits(queries, keys, call.scale), blocks, skip=mixed_k)
            mixed = mixed_q[..., :, None].byte() + mixed_k[..., None, :]
        force = blocks.force_text
        if self.sink:
            force = force | (torch.arange(blocks.partition.count, device=q.device) == 0)
        if self.tau is not None:
            keep = within_mass(scores, self.tau) | force | (mixed > 0)
            return block_plan(blocks, keep, f"tau {self.tau:g} decides what is kept, in place of sparsity")
        keep = blocks.select_topk(scores + mixed, call.density, scope=self.scope, heads=call.heads, force=force)
        return block_plan(blocks, keep)
