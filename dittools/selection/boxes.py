"""Blocks of positions as boxes of the picture, so that pairs of blocks are judged without looking at their tokens.

A block of a tile order is a box of frames, rows and columns, or a few; a block of the raster order is a run of rows.
A rule about pairs of tokens that is a product or a sum over the axes is decided for two boxes from their sides alone,
exactly; two blocks are as near as their nearest boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dittools.tokens import TokenGrid

# Numbers a chunk of box pairs may hold.
CHUNK = 1 << 22
NEVER = np.inf


@dataclass(frozen=True, eq=False)
class Boxes:
    """What video tokens each block holds.

    Args:
        low, high: int64 ``[N, n]``, first and last coordinate of each box on each of n axes.
        block: int64 ``[N]``, ascending; blocks without video have no box.
        blocks: M, all of them.
    """

    low: np.ndarray
    high: np.ndarray
    block: np.ndarray
    blocks: int

    @property
    def axes(self) -> int:
        """n, coordinates of a point."""
        return self.low.shape[1]

    def least(self, measure: Callable[[slice], np.ndarray]) -> np.ndarray:
        """The smallest measure between two blocks: fp32 ``[M, M]``, `NEVER` where one has no video.

        Args:
            measure: for a slice of the boxes, their measure to every box ``[len(slice), N]``.
        """
        out = np.full((self.blocks, self.blocks), NEVER, dtype=np.float32)
        first = np.flatnonzero(np.diff(self.block, prepend=-1))  # first box of each block that has one
        present, end = self.block[first], np.append(first[1:], len(self.block))
        step = max(1, CHUNK // (len(self.block) * int((end - first).max(initial=1))))
        for at in range(0, len(first), step):
            chosen = slice(at, at + step)
            rows = slice(first[at], end[chosen][-1])
            nearest = np.minimum.reduceat(measure(rows), first, axis=1)
            nearest = np.minimum.reduceat(nearest, first[chosen] - first[at], axis=0)
            out[np.ix_(present[chosen], present)] = nearest
        return out

    def gap(self, axis: int, rows: slice) -> np.ndarray:
        """How far apart two boxes are along an axis, 0 where they meet: int64 ``[len(rows), N]``."""
        low, high = self.low[:, axis], self.high[:, axis]
        return np.maximum(np.maximum(low[rows, None] - high, low - high[rows, None]), 0)

    def tables(self, pairs: Sequence[np.ndarray]) -> Callable[[slice], list[np.ndarray]]:
        """Per axis, the smallest entry of a table of coordinate pairs between two boxes.

        Args:
            pairs: one ``[X, X]`` table for each axis, by coordinate of the query and of the key.

        Returns:
            For a slice of the boxes, one ``[len(slice), N]`` for each axis.
        """
        found = []
        for axis, table in enumerate(pairs):
            sides = np.stack((self.low[:, axis], self.high[:, axis]), axis=1)
            unique, which = np.unique(sides, axis=0, return_inverse=True)
            query = np.stack([table[low : high + 1].min(0) for low, high in unique])  # [U, X]
            both = np.stack([query[:, low : high + 1].min(1) for low, high in unique], axis=1)  # [U, U]
            found.append((both, which.reshape(-1)))
        return lambda rows: [both[which[rows]][:, which] for both, which in found]


def boxes_of(grid: TokenGrid, order: torch.Tensor, block_size: int, *, flat: bool = False) -> Boxes:
    """Every block of an order as the boxes of frames, rows and columns that make it up.

    Args:
        order: ``[S]``, position -> token.
        block_size: positions in a block.
        flat: two axes instead of three, the frame and the raster index in it; no box spans two frames.
    """
    token = order.long().numpy()
    found = [_boxes(grid, part.shape, token, at, block_size, flat) for part, at in grid.grids]
    low, high, block = (np.concatenate(parts) for parts in zip(*found, strict=True))
    by_block = block.argsort(kind="stable")
    return Boxes(low[by_block], high[by_block], block[by_block], -(-grid.tokens // block_size))


def _boxes(
    grid: TokenGrid, shape: Sequence[int], token: np.ndarray, at: slice, block_size: int, flat: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low, high and block of the boxes of one part of a grid, moved to their places in the picture."""
    mine = np.flatnonzero((token >= at.start) & (token < at.stop))
    block = mine // block_size
    sides = (shape[0], shape[1] * shape[2]) if flat else shape
    point = np.stack(np.unravel_index(token[mine] - at.start, sides), axis=1)
    moves = tuple(shape) != grid.shape
    low = high = point
    # Points to bars, bars to sheets, sheets to boxes: what goes on along one axis and is equal on the others.
    for axis in (1,) if flat else (2, 1, 0):
        others = [i for i in range(len(sides)) if i != axis]
        goes_on = (
            (block[1:] == block[:-1])
            & (low[1:, axis] == high[:-1, axis] + 1)
            & (low[1:, others] == low[:-1, others]).all(1)
            & (high[1:, others] == high[:-1, others]).all(1)
        )
        if flat and moves:  # rows of another grid do not follow one another in the picture
            goes_on &= low[1:, 1] % shape[2] != 0
        begin = np.flatnonzero(np.concatenate(([True], ~goes_on)))
        end = np.append(begin[1:], len(block)) - 1
        low, high, block = low[begin], high[end], block[begin]
    if moves:
        low, high = (_moved(grid, shape, side, flat, last) for side, last in ((low, False), (high, True)))
    return low, high, block


def _moved(grid: TokenGrid, shape: Sequence[int], point: np.ndarray, flat: bool, last: bool) -> np.ndarray:
    """The first or the last of the picture's coordinates that points of another grid lie on, by shares of each axis."""
    if flat:
        point = np.stack((point[:, 0], *np.divmod(point[:, 1], shape[2])), axis=1)
    moved = ((point + last) * np.array(grid.shape) - last) // np.array(shape)
    return np.stack((moved[:, 0], moved[:, 1] * grid.width + moved[:, 2]), axis=1) if flat else moved
