"""Vertical stripes: a few key blocks that every query attends to."""

from __future__ import annotations

import torch

from dittools.blocks import Partition
from dittools.selectors.profiled import always_kept
from dittools.tokens import TokenGrid


def stripes(grid: TokenGrid, partition: Partition, columns: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the key blocks that hold most, until the share of pairs comes nearest to what is asked.

    Args:
        partition: of the positions, in raster.
        columns: what each key block is worth, ``[M]``.
        density: share of the pairs to keep; rows and columns of text count towards it.

    Returns:
        bool ``[M, M]`` on the CPU, at least one key block in every row.
    """
    sizes = partition.sizes().double()
    keep = always_kept(grid, partition, density)
    best = columns.cpu().double().masked_fill(keep.all(0), torch.inf).argsort(descending=True, stable=True)
    added = ((~keep)[:, best] * sizes[:, None]).sum(0) * sizes[best]
    total = (keep * sizes[:, None] * sizes).sum() + added.cumsum(0)
    count = 1 + int((total - density * partition.length**2).abs().argmin())
    keep[:, best[:count]] = True
    return keep
