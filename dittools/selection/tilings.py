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
from dittools.selection.boxes import Boxes, boxes_of
from dittools.selection.geometric import Pattern, forced, picture_share
from dittools.selection.levels import mask_to_density
from dittools.selection.windows import growing, grown_window, place_in, sees, set_window
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
        return mask_to_density(self.grid, self.order, level, 1 - share, self.block_size).pattern

    def around(self, window: Axes) -> np.ndarray:
        """Where on the path of smaller and larger windows two blocks see each other first, as `place_in`."""
        step = (2, 2, 2)
        path = growing((1, 1, 1), window, self.count, step) + growing(window, self.count, self.count, step)[1:]
        return place_in(path, self.boxes, self.seen)

    def shares(self, windows: Sequence[Axes]) -> list[float]:
        """What each window keeps of the picture's pairs, by block; those that differ in columns alone come at once."""
        held = forced(self.grid, self.order, self.block_size)
        found: dict[Axes, float] = {}
        for sheet in dict.fromkeys(window[:2] for window in windows):
            path = sorted({self._whole(window) for window in windows if window[:2] == sheet})
            level = place_in(path, self.boxes, self.seen)
            for place, window in enumerate(path):
                found[window] = picture_share(held | (level <= place), self.grid, self.block_size)
        return [found[self._whole(window)] for window in windows]
