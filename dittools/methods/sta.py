"""Sliding tile attention: a query tile sees the tiles of a window around its own, so that no block is half in use.

Source: Zhang et al., "Fast Video Generation with Sliding Tile Attention", arXiv 2502.04507: neighborhood attention on
a grid of tiles. With a profile of its search each head has its own window, by layer and part of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.upload import upload
from dittools.methods.base import AttentionCall, Plan
from dittools.methods.options import AUTO, option
from dittools.methods.static import Static
from dittools.orders.tiles import fit_tile, tiles
from dittools.selection.geometric import Pattern
from dittools.selection.searched import WindowSearch, stack_heads
from dittools.selection.tilings import Tiling
from dittools.selection.windows import growing


@dataclass(frozen=True)
class STA(Static):
    """Order: 3-D tiles. Selector: windows of whole tiles, an odd number of them or all. Budget: the window,
    for each head where a profile says what windows are worth to it.
    """

    name: ClassVar[str] = "sta"
    knows_heads: ClassVar[bool] = True
    profile_use: ClassVar[str] = "given"
    summary: ClassVar[str] = "a window of whole tiles around every tile (Sliding Tile Attention)"
    decides: ClassVar[tuple[str, ...]] = ("window",)

    window: int | tuple[int, int, int] | str = option(
        AUTO, "tiles along frames, rows, columns, each odd or all; auto: what the sparsity allows", kind="axes"
    )
    tile: int | tuple[int, int, int] | str = option(
        AUTO, "frames, rows, columns of a tile; auto: one block's worth", kind="axes"
    )

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        tiling = Tiling(grid, fit_tile(grid, block_size) if self.tile == AUTO else self.tile, block_size)
        if self.window != AUTO:
            return tiling.window(self.window)
        return tiling.grown(growing((1, 1, 1), tiling.count, tiling.count, (2, 2, 2)), sparsity)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        if call.profile is None:
            return super().plan(q, k, v, call)
        search = call.profile_cache.get_or_make((self, "search"), lambda: WindowSearch(call, self.window, self.tile))
        # Steps of a group share their windows, and heads of any layer the masks of equal ones.
        place = self, search.groups[call.step], call.layer, call.sparsity
        windows = call.profile_cache.get_or_make(place, lambda: search.of_heads(call))
        own = call.heads.pick(windows)
        masks = call.run_cache.get_or_make((place, tuple(own), q.device), lambda: search.masks(own, call, q.device))
        order = call.run_cache.get_or_make(
            (self, "order", q.device), lambda: upload(tiles(call.grid, search.tiling.tile), q.device)[None, None]
        )
        return _plan(order, masks, (f"sta: a window for each head from {call.profile.name}",))


def _plan(order: torch.Tensor, masks: Sequence[BlockMask], notes: tuple[str, ...]) -> Plan:
    """The plan of a mask for each head; kept for later steps, it takes the few masks that differ."""
    again = partial(_plan, order, masks, notes)
    return Plan(order, stack_heads(masks), notes=notes, pack=lambda: again)
