"""Sliding tile attention: a query tile sees the tiles of a window around its own, so that no block is half in use.

Source: Zhang et al., "Fast Video Generation with Sliding Tile Attention", arXiv 2502.04507: neighborhood attention on
a grid of tiles. Windows move inwards at borders. Tiles cut short by the grid's edge are tiles like any other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dittools.methods.options import axes
from dittools.methods.static import Static
from dittools.orders.tiles import fit_tile, tiles
from dittools.selectors.boxes import boxes_of
from dittools.selectors.geometric import Pattern
from dittools.selectors.windows import growing, grown_window, sees, set_window

AUTO = "auto"


@dataclass(frozen=True)
class STA(Static):
    """Order: 3-D tiles. Selector: windows of whole tiles, an odd number of them or all. Budget: the window."""

    name: ClassVar[str] = "sta"
    summary: ClassVar[str] = "a window of whole tiles around every tile (Sliding Tile Attention)"

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

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        tile = fit_tile(grid, block_size) if self.tile == AUTO else self.tile
        order = tiles(grid, tile)
        boxes = boxes_of(grid, order, block_size)
        count = tuple(-(-x // t) for x, t in zip(grid.shape, tile, strict=True))

        def seen(axis: int, size: int):
            x, t, n = grid.shape[axis], tile[axis], count[axis]
            by_tile = sees(n, size, 1)
            return by_tile.repeat(t, 0).repeat(t, 1)[:x, :x]

        if self.window != AUTO:
            # An even window has no middle tile: the original sees as far to both sides, which is one more.
            window = tuple(min(w + 1 - w % 2, n) for w, n in zip(self.window, count, strict=True))
            return set_window(grid, order, boxes, window, seen, block_size, unit=tile)
        path = growing((1, 1, 1), count, count, (2, 2, 2))
        return grown_window(grid, order, boxes, path, seen, sparsity, block_size, unit=tile)
