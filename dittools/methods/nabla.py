"""NABLA: the nucleus of a pooled attention map, or a sliding window of tiles, whichever keeps a block.

Source: Mikhailov et al., "NABLA", arXiv 2507.13546, as in Kandinsky 5: 8 x 8 patches of one frame, pooled softmax,
top-p, and a window of 11 x 3 x 3 patches that shrinks at the edges. With ``sparsity`` binding, the p that meets it is
found for all heads of the call together, and the window takes at most half of the budget, nearest first. With
``top_p`` the published rule holds and the density is what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.kernels.lists import keep_mass
from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.checks import one_of, share, whole
from dittools.orders.named import tile_shape
from dittools.selectors.budget import SCOPES
from dittools.selectors.neighbours import affordable, contact, window
from dittools.selectors.ordered_blocks import ordered_blocks
from dittools.selectors.pooled import block_softmax, pooled_logits


@dataclass(frozen=True)
class Nabla(Method):
    """Order: tiles of one frame. Selector: top-p of the pooled softmax, and a window. Budget: one p for a layer."""

    name: ClassVar[str] = "nabla"
    summary: ClassVar[str] = "nucleus of a pooled attention map, and a window of tiles (NABLA)"
    decides: ClassVar[tuple[str, ...]] = ("top_p",)

    scope: str = field(default="layer", metadata={"help": f"who shares a budget: {', '.join(SCOPES)}"})
    top_p: float | None = field(
        default=None, metadata={"help": "share of pooled softmax to keep, in place of sparsity"}
    )
    window: Sequence[int] = field(default=(11, 3, 3), metadata={"help": "tiles: frames, rows, columns, odd numbers"})

    def __post_init__(self):
        one_of("scope", self.scope, SCOPES)
        share("top_p", self.top_p)
        if isinstance(self.window, str) or not isinstance(self.window, Sequence) or len(self.window) != 3:
            raise ValueError(f"window must be three numbers of tiles (frames, rows, columns), got {self.window!r}")
        for extent in self.window:
            whole("window", extent, 1)
            if extent % 2 == 0:
                raise ValueError(f"window must be odd along each axis, to have a middle, got {self.window!r}")
        object.__setattr__(self, "window", tuple(self.window))

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, "patches")
        budget = call.density if self.top_p is None else 1
        near, notes = call.remember(("nabla", self.window, budget, q.device), lambda: self.near(blocks, call, budget))
        scores = block_softmax(pooled_logits(q, k, blocks, call.scale), blocks)
        if self.top_p is not None:
            keep = keep_mass(scores, self.top_p) | near
            return block_plan(blocks, keep, f"top_p {self.top_p:g} decides what is kept, in place of sparsity")
        keep = blocks.spend(scores, call.density, scope=self.scope, ranking="cumulative", force=near)
        return block_plan(blocks, keep, *notes)

    def near(self, blocks, call: AttentionCall, budget: float) -> tuple[torch.Tensor, tuple[str, ...]]:
        """The window, as much of it as the budget pays."""
        steps = window(tile_shape("patches", call.grid, call.block_size), self.window)
        return affordable(contact(call.grid, blocks, steps), blocks, budget)
