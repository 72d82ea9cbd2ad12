"""Fewer keys, evenly along each axis of the picture, each standing for the tokens around it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.keys import KeySegments, KeySubset
from dittools.tokens import TokenGrid

Sizes = tuple[int, int, int]
PICKS = ("mean", "random", "middle")
# How near to the asked density is near enough to look at the shape instead.
NEAR = 0.01


def fit_sizes(grid: TokenGrid, density: float) -> Sizes:
    """How many frames, rows and columns to pick, so that they are this share of the video's tokens.

    Frames are all picked while that allows; rows and columns are thinned alike.
    """
    t, h, w = np.meshgrid(*(np.arange(1, x + 1) for x in grid.shape), indexing="ij", sparse=True)
    error = np.abs(t * h * w / grid.video - density)
    uneven = np.abs(np.log(h / grid.height) - np.log(w / grid.width)) + 0 * t
    dropped = (grid.frames - t) + 0 * h * w
    far = np.maximum(error, max(NEAR, error.min()))
    best = np.lexsort((error.ravel(), uneven.ravel(), dropped.ravel(), far.ravel()))[0]
    return tuple(int(i) + 1 for i in np.unravel_index(best, grid.shape))


def picked_keys(
    grid: TokenGrid,
    sizes: Sequence[Sizes],
    block_size: int,
    *,
    pick: str = "middle",
    bias: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[KeySubset, BlockMask]:
    """One key for each cell of a grid and all text keys, and the mask in which every query that is no text sees them.

    Along an axis of x tokens of which n are picked, cells are n stretches, and a key stands for the tokens of its cell.
    Keys that stand for equally many are put side by side, text last, because a bias belongs to a block; a block that
    mixes them takes the log of its mean, and one that holds text takes none.

    Args:
        sizes: frames, rows and columns to pick of the picture and of every other grid of the sequence.
        block_size: positions in a block.
        pick: what stands for a cell, one of `PICKS`: the token in its middle (nearest-exact resizing), a random one,
            or the means of its keys and of its values.
        bias: without it no key counts for others.
        generator: on the CPU; draws random ones.

    Returns:
        On the CPU. Text queries see every key of the sequence, picked or not.
    """
    cells = _Cells.joined(
        [_Cells.of(part.shape, few, at.start) for (part, at), few in zip(grid.grids, sizes, strict=True)]
    )
    by_count = np.argsort(-cells.counts, kind="stable")
    text = grid.stays_dense().numpy().nonzero()[0]
    token = cells.drawn(generator) if pick == "random" else cells.middle
    tokens = np.concatenate((token[by_count], text))
    each = np.concatenate((cells.counts[by_count], np.ones(len(text), dtype=np.int64)))
    key = Partition(len(tokens), block_size)

    starts = np.arange(0, len(tokens), block_size)
    log_mean = np.log(np.add.reduceat(each, starts) / key.sizes().numpy())
    log_mean[starts + key.sizes().numpy() > len(token)] = 0.0  # holds text
    # The same for every key it changes nothing.
    useful = bias and np.ptp(log_mean) > 0
    runs = None
    if pick == "mean":
        order = np.concatenate((cells.members(by_count), text))
        offsets = np.concatenate(([0], each.cumsum()))
        runs = KeySegments(*(torch.from_numpy(x).int()[None, None] for x in (order, offsets)))
    queries = slice(grid.video_start, grid.grids[-1].at.stop)
    subset = KeySubset(
        torch.from_numpy(tokens),
        torch.from_numpy(log_mean).float()[None, None] if useful else None,
        queries,
        grid.tokens,
        runs,
    )
    return subset, BlockMask.full(Partition(queries.stop - queries.start, block_size), key)


class _Cells(NamedTuple):
    """Cells of grids, n of them, that hold S tokens.

    Args:
        middle: int64 ``[n]``, the token in the middle of each. counts: int64 ``[n]``, tokens of each.
        tokens, cell: int64 ``[S]``, tokens and the cell of each.
    """

    middle: np.ndarray
    counts: np.ndarray
    tokens: np.ndarray
    cell: np.ndarray

    @classmethod
    def of(cls, shape: Sizes, sizes: Sizes, start: int) -> _Cells:
        """Of a grid that begins at token ``start``, so many along each axis."""
        axes = list(zip(shape, sizes, strict=True))
        middle = np.meshgrid(*((2 * np.arange(n) + 1) * x // (2 * n) for x, n in axes), indexing="ij")
        of = np.ravel_multi_index(np.meshgrid(*(np.arange(x) * n // x for x, n in axes), indexing="ij"), sizes).ravel()
        tokens = start + np.arange(len(of))
        return cls(
            np.ravel_multi_index(middle, shape).ravel() + start, np.bincount(of, minlength=prod(sizes)), tokens, of
        )

    @classmethod
    def joined(cls, parts: Sequence[_Cells]) -> _Cells:
        """Of several grids, their cells numbered on."""
        first = np.cumsum([0, *(len(part.counts) for part in parts)])
        numbered = [part._replace(cell=part.cell + n) for part, n in zip(parts, first, strict=False)]
        return cls(*(np.concatenate(x) for x in zip(*numbered, strict=True)))

    def members(self, order: np.ndarray) -> np.ndarray:
        """Tokens cell by cell, the cells in this order: int64 ``[S]``."""
        rank = np.empty(len(order), dtype=np.int64)
        rank[order] = np.arange(len(order))
        return self.tokens[np.argsort(rank[self.cell], kind="stable")]

    def drawn(self, generator: torch.Generator) -> np.ndarray:
        """A random token of each cell: int64 ``[n]``."""
        share = torch.rand(len(self.counts), generator=generator, dtype=torch.float64).numpy()
        within = (share * self.counts).astype(np.int64)
        return self.members(np.arange(len(self.counts)))[self.counts.cumsum() - self.counts + within]
