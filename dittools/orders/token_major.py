"""Token-major: all frames of a patch side by side, so that one place at any time is one run of positions."""

from __future__ import annotations

from math import prod

import torch

from dittools.orders.raster import part_by_part
from dittools.tokens import TokenGrid


def token_major(grid: TokenGrid) -> torch.Tensor:
    """Position -> token: int32 ``[S]`` on the CPU.

    The first frame comes first, in raster, so that it stays one run of positions for whoever attends to all
    of it; then, patch by patch, the tokens of frames 1 and later. Text keeps its place; history is
    ordered so by itself.

    Source: the layout transform of Sparse VideoGen (arXiv 2502.01776, section 4.2), which moves frame 0 too.
    """
    return part_by_part(grid, _token_major)


def _token_major(shape: tuple[int, int, int]) -> torch.Tensor:
    by_frame = torch.arange(prod(shape)).view(shape[0], -1)
    return torch.cat((by_frame[0], by_frame[1:].T.flatten()))
