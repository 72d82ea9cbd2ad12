"""Tiles: a box of frames, rows and columns side by side, so that what is near in the picture shares a block."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np
import torch

from dittools.orders.raster import part_by_part
from dittools.tokens import TokenGrid

Shape = tuple[int, int, int]


def tiles(grid: TokenGrid, shape: Shape) -> torch.Tensor:
    """Position -> token: int32 ``[S]`` on the CPU.

    Whole tiles come first, one after another in raster order and raster inside, so that tiles of a block's volume
    are blocks. Tiles that an edge of the grid cuts short follow, those cut by the same edges together: nothing is
    padded, and a block that holds several cut tiles holds neighbours. Text keeps its place, and
    a reference has tiles of its own.

    Args:
        grid: layout of the S tokens.
        shape: frames, rows and columns of a tile.
    """
    return part_by_part(grid, lambda own: _tiles(own, shape))


def _tiles(grid: Shape, shape: Shape) -> torch.Tensor:
    at = TokenGrid(*grid).positions().numpy()  # [video, 3]
    tile, inside = at // shape, at % shape
    cut = tile >= np.array(grid) // shape  # [video, 3], beyond the last whole tile of that axis
    # Most significant last: which edges cut the tile, which tile, where in it.
    keys = [*inside.T[::-1], *tile.T[::-1], cut @ (4, 2, 1)]
    return torch.from_numpy(np.lexsort(keys))


def fit_tile(grid: TokenGrid, block_size: int, share: Shape | tuple[float, ...] = (0.6, 0.6, 0.6)) -> Shape:
    """The tile of ``block_size`` tokens that wastes least on a window of this share of each axis.

    A block sees what any of its tokens sees, so a window of w along an axis costs a tile of t about w + t; a tile that
    does not divide the axis leaves a part of one over.

    Args:
        share: how much of each axis the window covers, in (0, 1]; by default a window of 0.2 of the pairs.
    """

    def cost(shape: Shape) -> float:
        each = (
            (1 + t / (window * x)) * -(-x // t) * t / x for x, t, window in zip(grid.shape, shape, share, strict=True)
        )
        return prod(each)

    return min(_boxes_of(block_size), key=lambda shape: (cost(shape), shape))


def _boxes_of(volume: int) -> Iterator[Shape]:
    """Every (frames, rows, columns) of this volume."""
    for frames in range(1, volume + 1):
        if volume % frames == 0:
            area = volume // frames
            yield from ((frames, rows, area // rows) for rows in range(1, area + 1) if area % rows == 0)
