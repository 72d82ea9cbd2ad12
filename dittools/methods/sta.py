"""Sliding tile attention: a query tile sees the tiles of a window around its own, so that no block is half in use.

Source: Zhang et al., "Fast Video Generation with Sliding Tile Attention", arXiv 2502.04507: neighborhood attention on
a grid of tiles. Windows move inwards at borders. Tiles cut short by the grid's edge are tiles like any other. With a
profile of its search each head has its own window, by layer and part of the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import torch

from dittools.blocks import BlockMask
from dittools.methods.base import AttentionCall, Plan
from dittools.methods.options import axes
from dittools.methods.static import Static
from dittools.orders.tiles import fit_tile, tiles
from dittools.selectors.boxes import Boxes, boxes_of
from dittools.selectors.geometric import Pattern, forced, picture_share
from dittools.selectors.levels import grow
from dittools.selectors.searched import searched_windows, tile_windows, to_budget
from dittools.selectors.windows import growing, grown_window, place_in, sees, set_window
from dittools.tokens import TokenGrid
from dittools.upload import upload

AUTO = "auto"
Axes = tuple[int, int, int]


@dataclass(frozen=True)
class STA(Static):
    """Order: 3-D tiles. Selector: windows of whole tiles, an odd number of them or all. Budget: the window,
    for each head where a profile says what windows are worth to it.
    """

    name: ClassVar[str] = "sta"
    profile_use: ClassVar[str] = "given"
    summary: ClassVar[str] = "a window of whole tiles around every tile (Sliding Tile Attention)"
    decides: ClassVar[tuple[str, ...]] = ("window",)

    window: int | tuple[int, int, int] | str = field(
        default=AUTO,
        metadata={"help": "tiles along frames, rows, columns, each odd or all; auto: what the sparsity allows"},
    )
    tile: int | tuple[int, int, int] | str = field(
        default=AUTO, metadata={"help": "frames, rows, columns of a tile; auto: one block's worth"}
    )

    def __post_init__(self):
        for name in ("window", "tile"):
            object.__setattr__(self, name, axes(name, getattr(self, name), auto=True))

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        if call.profile is None:
            return super().plan(q, k, v, call)
        tile, _, groups = call.keep((self, "searched"), lambda: self._searched(call))
        # Steps of a group share their windows, and heads of any layer the masks of equal ones.
        group = groups[call.step]
        key = (self, group, call.layer, call.sparsity, q.device)
        masks = call.remember(key, lambda: self._by_head(call, group, q.device))
        order = call.remember((self, "order", q.device), lambda: upload(tiles(call.grid, tile), q.device)[None, None])
        return _per_head(order, masks, (f"sta: a window for each head from {call.profile.name}",))

    def _searched(self, call: AttentionCall) -> tuple[Axes, list[Axes], list[int]]:
        tile, windows, groups = searched_windows(call.profile)
        if self.window != AUTO:
            raise ValueError(
                f"sta was asked for the window {list(self.window)} and given {call.profile.name}, which decides it: "
                "use one of the two"
            )
        if self.tile not in (AUTO, tile):
            raise ValueError(
                f"sta was asked for tiles of {list(self.tile)}, and {call.profile.name} has windows of tiles of "
                f"{list(tile)}: leave tile at auto"
            )
        return tile, windows, groups

    def _by_head(self, call: AttentionCall, group: int, device: torch.device) -> list[BlockMask]:
        """The mask of each head, ``[1, 1, M, M]``; those of equal windows are one."""
        tile, windows, _ = searched_windows(call.profile)
        tiling = call.keep((self, "tiling"), lambda: Tiling(call.grid, tile, call.block_size))

        def chosen() -> list[tuple[Axes, float | None]]:
            shares = call.keep((self, "shares"), lambda: tiling.shares(windows))
            found = tile_windows(call.profile, call.layer, call.step, call.density, shares)
            known = dict(zip(windows, shares, strict=True))
            return list(zip(found, to_budget([known[w] for w in found], call.density), strict=True))

        def made(window: Axes, share: float | None) -> BlockMask:
            if share is None:
                return tiling.window(window).mask
            level = call.remember((self, "around", window), lambda: tiling.around(window))
            return tiling.near(level, share).mask

        def mask(window: Axes, share: float | None) -> BlockMask:
            one = call.keep((self, window, share), lambda: made(window, share))
            return call.remember((self, window, share, device), lambda: one.to(device))

        return [mask(*one) for one in call.keep((self, group, call.layer, call.sparsity), chosen)]

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        tile = fit_tile(grid, block_size) if self.tile == AUTO else self.tile
        tiling = Tiling(grid, tile, block_size)
        if self.window != AUTO:
            return tiling.window(self.window)
        return tiling.grown(growing((1, 1, 1), tiling.count, tiling.count, (2, 2, 2)), sparsity)


@dataclass(frozen=True, eq=False)
class Tiling:
    """A grid cut into tiles, and masks of windows on it."""

    grid: TokenGrid
    tile: Axes
    block_size: int

    @property
    def count(self) -> Axes:
        """Tiles along each axis."""
        return tuple(-(-x // t) for x, t in zip(self.grid.shape, self.tile, strict=True))

    @cached_property
    def order(self) -> torch.Tensor:
        return tiles(self.grid, self.tile)

    @cached_property
    def boxes(self) -> Boxes:
        return boxes_of(self.grid, self.order, self.block_size)

    def seen(self, axis: int, size: int) -> np.ndarray:
        """Which tokens of an axis see each other in a window of this many tiles: bool ``[X, X]``."""
        x, t = self.grid.shape[axis], self.tile[axis]
        return sees(self.count[axis], size, 1).repeat(t, 0).repeat(t, 1)[:x, :x]

    def window(self, window: Axes) -> Pattern:
        """The mask of one window."""
        window = self._whole(window)
        return set_window(self.grid, self.order, self.boxes, window, self.seen, self.block_size, unit=self.tile)

    def _whole(self, window: Axes) -> Axes:
        """An even window has no middle tile: the original sees as far to both sides, which is one more."""
        return tuple(min(w + 1 - w % 2, n) for w, n in zip(window, self.count, strict=True))

    def grown(self, path: Sequence[Axes], sparsity: float) -> Pattern:
        """The mask of the window on a path that skips ``sparsity``."""
        return grown_window(
            self.grid, self.order, self.boxes, path, self.seen, sparsity, self.block_size, unit=self.tile
        )

    def near(self, level: np.ndarray, share: float) -> Pattern:
        """A window made smaller or larger until it keeps this share of the pairs; ``level`` is of `around`."""
        return grow(self.grid, self.order, level, 1 - share, self.block_size).pattern

    def around(self, window: Axes) -> np.ndarray:
        """Where on the path of smaller and larger windows two blocks see each other first, as `place_in`."""
        step = (2, 2, 2)
        path = growing((1, 1, 1), window, self.count, step) + growing(window, self.count, self.count, step)[1:]
        return place_in(path, self.boxes, self.seen)

    def shares(self, windows: Sequence[Axes]) -> list[float]:
        """What each window keeps of the picture's pairs, by block; those that differ in columns alone
        are made at once.
        """
        held = forced(self.grid, self.order, self.block_size)
        found: dict[Axes, float] = {}
        for sheet in dict.fromkeys(window[:2] for window in windows):
            path = sorted({self._whole(window) for window in windows if window[:2] == sheet})
            level = place_in(path, self.boxes, self.seen)
            for place, window in enumerate(path):
                found[window] = picture_share(held | (level <= place), self.grid, self.block_size)
        return [found[self._whole(window)] for window in windows]


def _per_head(order: torch.Tensor, masks: Sequence[BlockMask], notes: tuple[str, ...]) -> Plan:
    one = masks[0]
    if all(mask is one for mask in masks):
        return Plan(order, one, notes=notes)
    lists = (torch.cat(part, 1) for part in zip(*(mask.lists() for mask in masks), strict=True))  # [1, H, ...]
    density = torch.cat([mask.density() for mask in masks], 1)
    again = partial(_per_head, order, masks, notes)
    return Plan(order, BlockMask.from_lists(*lists, one.query, one.key, density), notes=notes, fold=lambda: again)
