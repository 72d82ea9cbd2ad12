"""The six orders of the axes of a video: which of frame, row and column runs fastest, and which slowest.

Source: PAROAttention (arXiv 2506.16054, section 4.1). A head that gathers from its neighbourhood along one axis sees
them side by side once that axis runs fastest, and its attention map falls into blocks.
"""

from __future__ import annotations

from math import prod

import torch

from dittools.orders.raster import part_by_part
from dittools.tokens import TokenGrid

AXES = ("fhw", "fwh", "hwf", "hfw", "whf", "wfh")
"""Slowest axis first: f frame, h row, w column. "fhw" is raster. The numbers are those that profiles store."""


def axis_order(grid: TokenGrid, axes: str) -> torch.Tensor:
    """Position -> token: int32 ``[S]`` on the CPU. Text keeps its place.

    Raises:
        ValueError: when ``axes`` is none of `AXES`.
    """
    if axes not in AXES:
        raise ValueError(f"the order of the axes must be one of {', '.join(AXES)}, got {axes!r}")
    slowest_first = ["fhw".index(axis) for axis in axes]
    return part_by_part(grid, lambda own: torch.arange(prod(own)).view(own).permute(slowest_first).flatten())


def inverse(order: torch.Tensor) -> torch.Tensor:
    """Token -> position, of position -> token: int32 ``[S]``."""
    places = torch.empty_like(order)
    places[order.long()] = torch.arange(len(order), dtype=order.dtype, device=order.device)
    return places
