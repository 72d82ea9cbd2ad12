"""Raster: the order in which a model hands over its tokens, frame by frame and row by row."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dittools.tokens import TokenGrid


def raster(grid: TokenGrid) -> torch.Tensor:
    """Position -> token, the identity: int32 ``[S]`` on the CPU."""
    return torch.arange(grid.tokens, dtype=torch.int32)


def part_by_part(grid: TokenGrid, own: Callable[[tuple[int, int, int]], torch.Tensor]) -> torch.Tensor:
    """Position -> token of an order that each part of a sequence has by itself: int32 ``[S]`` on the CPU.

    Args:
        own: the order of a grid of (frames, height, width) alone, whole numbers of any dtype. Text keeps its place.
    """
    order = raster(grid)
    for part, at in grid.grids:
        order[at] = own(part.shape).int() + at.start
    return order
