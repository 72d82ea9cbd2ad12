"""NABLA: the nucleus of a pooled attention map, or a sliding window of tiles, whichever keeps a block.

Source: Mikhailov et al., "NABLA", arXiv 2507.13546, as in Kandinsky 5: 8 x 8 patches of one frame, pooled softmax,
top-p, and a window of 11 x 3 x 3 patches that shrinks at the edges. With ``sparsity`` binding, the p that meets it is
found for all heads of the call together, and the window takes at most half of the budget, nearest first. With
``top_p`` the published rule holds and the density is what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.kernels.block_sparse.lists import keep_mass
from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import option, scope_option, share_option
from dittools.orders.named import tile_shape
from dittools.selection.neighbours import affordable, contact, window
from dittools.selection.ordered_blocks import ordered_blocks
from dittools.selection.pooled import block_softmax, pooled_logits


@dataclass(frozen=True)
class Nabla(Method):
    """Order: tiles of one frame. Selector: top-p of the pooled softmax, and a window. Budget: one p for a layer."""

    name: ClassVar[str] = "nabla"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "nucleus of a pooled attention map, and a window of tiles (NABLA)"
    decides: ClassVar[tuple[str, ...]] = ("top_p",)
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    scope: str = scope_option("layer")
    top_p: float | None = share_option("share of pooled softmax to keep, in place of sparsity")
    window: int | Sequence[int] = option((11, 3, 3), "tiles: frames, rows, columns, odd numbers", kind="axes")

    def __post_init__(self):
        super().__post_init__()
        if not all(extent % 2 for extent in self.window):
            raise ValueError(f"window must be odd along each axis, to have a middle, got {list(self.window)}")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, "patches")
        budget = call.density if self.top_p is None else 1
        near, notes = call.run_cache.get_or_make(
            ("nabla", self.window, budget, q.device), lambda: self.near(blocks, call, budget)
        )
        scores = block_softmax(pooled_logits(q, k, blocks, call.scale), blocks)
        if self.top_p is not None:
            keep = keep_mass(scores, self.top_p) | near
            return block_plan(blocks, keep, f"top_p {self.top_p:g} decides what is kept, in place of sparsity")
        keep = blocks.select_topk(
            scores, call.density, scope=self.scope, heads=call.heads, ranking="cumulative", force=near
        )
        return block_plan(blocks, keep, *notes)

    def near(self, blocks, call: AttentionCall, budget: float) -> tuple[torch.Tensor, tuple[str, ...]]:
        """The window, as much of it as the budget pays."""
        steps = window(tile_shape("patches", call.grid, call.block_size), self.window)
        return affordable(contact(call.grid, blocks, steps), blocks, budget)
