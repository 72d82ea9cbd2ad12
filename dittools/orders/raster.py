"""Raster: the order in which a model hands over its tokens, frame by frame and row by row."""

from __future__ import annotations

import torch

from dittools.tokens import TokenGrid


def raster(grid: TokenGrid) -> torch.Tensor:
    """Position -> token, the identity: int32 ``[S]`` on the CPU."""
    return torch.arange(grid.tokens, dtype=torch.int32)
