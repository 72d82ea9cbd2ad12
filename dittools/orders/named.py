"""Static orders by name, with tiles that hold as many tokens as a block."""

from __future__ import annotations

import torch

from dittools.orders.curve import curve
from dittools.orders.tiles import tiles
from dittools.tokens import TokenGrid

ORDERS = ("raster", "patches", "cubes", "columns", "curve")


def named_order(name: str, grid: TokenGrid, block_size: int) -> torch.Tensor | None:
    """Position -> token, int32 ``[S]`` on the CPU; None for raster, which needs no order.

    Args:
        name: "raster"; "patches", 2-D tiles of one frame; "cubes", 3-D tiles; "columns", a few patches through all
            frames; "curve", space-filling.
        grid: layout of the S tokens.
        block_size: tokens in a block, and in a tile where the frames allow it.

    Raises:
        ValueError: for an unknown name.
    """
    if name == "raster":
        return None
    if name == "curve":
        return curve(grid)
    return tiles(grid, tile_shape(name, grid, block_size))


def tile_shape(name: str, grid: TokenGrid, block_size: int) -> tuple[int, int, int]:
    """Frames, rows and columns of a tile of about ``block_size`` tokens.

    128 tokens give patches of 1 x 8 x 16 and cubes of 4 x 4 x 8; 64 give 1 x 8 x 8 and 4 x 4 x 4.

    Raises:
        ValueError: for a name that stands for no tiles.
    """
    frames = {"patches": 1, "cubes": _power_of_two(block_size ** (1 / 3)), "columns": grid.frames}.get(name)
    if frames is None:
        raise ValueError(f"unknown order {name!r}: use one of {', '.join(ORDERS)}")
    frames = min(frames, grid.frames)
    patch = max(1, block_size // frames)
    height = _power_of_two(patch**0.5)
    return frames, height, max(1, patch // height)


def _power_of_two(x: float) -> int:
    """The largest power of two up to x, which may be a rounding error short of one."""
    power = 1
    while power * 2 <= x + 1e-6:
        power *= 2
    return power
