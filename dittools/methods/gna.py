"""Generalized neighborhood attention: every query sees a window of frames, rows and columns around it.

Source: Hassani et al., arXiv 2504.16922, and NATTEN. Windows are exact (see `selection.windows`); a pair of blocks is
computed whole when any of its token pairs is in a window, so a query sees its window and a little more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dittools.methods.options import AUTO, option
from dittools.methods.static import Static
from dittools.orders.tiles import fit_tile, tiles
from dittools.selection.boxes import boxes_of
from dittools.selection.geometric import Pattern
from dittools.selection.windows import Windows, fitted, growing, sees


@dataclass(frozen=True)
class GNA(Static):
    """Order: 3-D tiles of a block's volume. Selector: windows. Budget: the window, in the grid's proportions."""

    name: ClassVar[str] = "gna"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "a window around every query, by stride and dilation (NATTEN)"
    decides: ClassVar[tuple[str, ...]] = ("window",)

    window: int | tuple[int, int, int] | str = option(
        AUTO, "frames, rows, columns a query sees; auto: what the sparsity allows", kind="axes"
    )
    stride: int | tuple[int, int, int] | str = option(
        AUTO, "queries along each axis that share a window; auto: 1 with a window, a tile without", kind="axes"
    )
    dilation: int | tuple[int, int, int] = option(1, "step between the keys of a window along each axis", kind="axes")
    tile: int | tuple[int, int, int] | str = option(
        AUTO, "frames, rows, columns side by side in the order; auto: one block's worth", kind="axes"
    )

    def __post_init__(self):
        super().__post_init__()
        if AUTO not in (self.window, self.stride) and any(s > w for s, w in zip(self.stride, self.window, strict=True)):
            raise ValueError(f"stride {self.stride} must not be larger than window {self.window} on any axis")

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        tile = fit_tile(grid, block_size) if self.tile == AUTO else self.tile
        order = tiles(grid, tile)
        # A window of an odd number of tiles that moves by tiles uses up the blocks it touches (the paper's section 4).
        aligned = self.stride == self.window == AUTO
        asked = grid.shape if self.window == AUTO else self.window
        stride = (tile if aligned else (1, 1, 1)) if self.stride == AUTO else self.stride
        window, stride, dilation = fitted(grid.shape, asked, stride, self.dilation)

        def seen(axis: int, size: int):
            return sees(grid.shape[axis], size, stride[axis], dilation[axis])

        windows = Windows(grid, order, boxes_of(grid, order, block_size), seen, block_size)
        if self.window != AUTO:
            return windows.fixed(window)
        step = tuple(2 * s for s in stride) if aligned else (1, 1, 1)
        return windows.grown(growing(stride, window, grid.shape, step), sparsity)
