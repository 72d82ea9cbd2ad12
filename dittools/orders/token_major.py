"""Token-major: all frames of a patch side by side, so that one place at any time is one run of positions."""

from __future__ import annotations

import torch

from dittools.orders.raster import raster
from dittools.tokens import TokenGrid


def token_major(grid: TokenGrid) -> torch.Tensor:
    """Position -> token: int32 ``[S]`` on the CPU.

    The first frame comes first, in raster, so that it stays one run of positions for whoever attends to all
    of it; then, patch by patch, the tokens of frames 1 and later. Text keeps its place.

    Source: the layout transform of Sparse VideoGen (arXiv 2502.01776, section 4.2), which moves frame 0 too.
    """
    order = raster(grid)
    video = order[grid.video_slice]
    later = video[grid.frame :].view(grid.frames - 1, grid.frame)
    order[grid.video_slice] = torch.cat((video[: grid.frame], later.T.flatten()))
    return order
