"""3-D tiles: the tokens of one tile side by side, tile after tile."""

from __future__ import annotations

import torch

from dittools.orders.raster import raster
from dittools.tokens import TokenGrid


def tiles(grid: TokenGrid, shape: tuple[int, int, int]) -> torch.Tensor:
    """Position -> token, tiles in raster order and raster order inside each: int32 ``[S]`` on the CPU.

    Args:
        grid: layout of the S tokens; text keeps its place.
        shape: frames, rows and columns of a tile. Tiles at the far edges are cut where they do not fit.
    """
    order = raster(grid)
    tile = grid.positions() // torch.tensor(shape)
    across = [-(-size // step) for size, step in zip(grid.shape, shape, strict=True)]
    rank = (tile[:, 0] * across[1] + tile[:, 1]) * across[2] + tile[:, 2]
    order[grid.video_slice] = grid.video_start + rank.argsort(stable=True).int()
    return order
