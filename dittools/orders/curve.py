"""A curve that fills the grid: near in the order means near in frame, row and column."""

from __future__ import annotations

import torch

from dittools.orders.raster import raster
from dittools.tokens import TokenGrid


def curve(grid: TokenGrid) -> torch.Tensor:
    """Position -> token: int32 ``[S]`` on the CPU, text in its place.

    The box is halved along its longest side until single tokens are left, and the halves are walked one after
    the other: the recursion behind the Hilbert curve without its turns, for any sizes.
    """
    index = torch.arange(grid.video).view(grid.shape)
    found, boxes = [], [index]
    while boxes:
        box = boxes.pop()
        if box.numel() <= 2:
            found.append(box.flatten())
            continue
        axis = max(range(3), key=lambda a: box.shape[a])
        half = box.shape[axis] // 2
        boxes += [box.narrow(axis, half, box.shape[axis] - half), box.narrow(axis, 0, half)]
    order = raster(grid)
    order[grid.video_slice] = grid.video_start + torch.cat(found).int()
    return order
