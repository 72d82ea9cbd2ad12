"""A grid cut into tiles, and windows of whole tiles on it.

Source: Zhang et al., "Fast Video Generation with Sliding Tile Attention", arXiv 2502.04507. Windows move inwards at
borders. Tiles cut short by the grid's edge are tiles like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from dittools.orders.tiles import tiles
from dittools.selection.boxes import boxes_of
from dittools.selection.geometric import Pattern, forced, picture_share
from dittools.selection.levels import mask_to_density
from dittools.selection.windows import Windows, growing, sees
from dittools.tokens import TokenGrid

Axes = tuple[int, int, int]


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
    def windows(self) -> Windows:
        boxes = boxes_of(self.grid, self.order, self.block_size)
        return Windows(self.grid, self.order, boxes, self.seen, self.block_size, unit=self.tile)

    def seen(self, axis: int, size: int) -> np.ndarray:
        """Which tokens of an axis see each other in a window of this many tiles: bool ``[X, X]``."""
        x, t = self.grid.shape[axis], self.tile[axis]
        return sees(self.count[axis], size, 1).repeat(t, 0).repeat(t, 1)[:x, :x]

    def window(self, window: Axes) -> Pattern:
        """The mask of one window."""
        return self.windows.fixed(self._whole(window))

    def _whole(self, window: Axes) -> Axes:
        """An even window has no middle tile: the original sees as far to both sides, which is one more."""
        return tuple(min(w + 1 - w % 2, n) for w, n in zip(window, self.count, strict=True))

    def grown(self, path: Sequence[Axes], sparsity: float) -> Pattern:
        """The mask of the window on a path that skips ``sparsity``."""
        return self.windows.grown(path, sparsity)

    def near(self, level: np.ndarray, share: float) -> Pattern:
        """A window made smaller or larger until it keeps this share of the pairs; ``level`` is of `around`."""
        return mask_to_density(self.grid, self.order, level, 1 - share, self.block_size).pattern

    def around(self, window: Axes) -> np.ndarray:
        """Where on the path of smaller and larger windows two blocks see each other first, as `Windows.place_in`."""
        step = (2, 2, 2)
        path = growing((1, 1, 1), window, self.count, step) + growing(window, self.count, self.count, step)[1:]
        return self.windows.place_in(path)

    def shares(self, windows: Sequence[Axes]) -> list[float]:
        """What each window keeps of the picture's pairs, by block; those that differ in columns alone come at once."""
        held = forced(self.grid, self.order, self.block_size)
        found: dict[Axes, float] = {}
        for sheet in dict.fromkeys(window[:2] for window in windows):
            path = sorted({self._whole(window) for window in windows if window[:2] == sheet})
            level = self.windows.place_in(path)
            for place, window in enumerate(path):
                found[window] = picture_share(held | (level <= place), self.grid, self.block_size)
        return [found[self._whole(window)] for window in windows]
