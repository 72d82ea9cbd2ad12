"""Keys picked evenly along each axis of the picture, each standing for the tokens around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dittools.blocks import BlockMask, Partition
from dittools.keys import KeySubset
from dittools.tokens import TokenGrid

Sizes = tuple[int, int, int]
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
    grid: TokenGrid, sizes: Sequence[Sizes], block_size: int, *, bias: bool = True
) -> tuple[KeySubset, BlockMask]:
    """The picked keys and all text keys, and the mask in which every query that is no text sees all of them.

    Along an axis of x tokens of which n are picked, pick i is the middle of stretch i of n (nearest-exact resizing),
    and stands for the tokens of its stretch. Keys that stand for equally many are put side by side, text last, because
    a bias belongs to a block; a block that mixes them takes the log of its mean, and one that holds text takes none.

    Args:
        sizes: frames, rows and columns to pick of the picture and of every other grid of the sequence.
        block_size: positions in a block.
        bias: without it no key counts for others.

    Returns:
        On the CPU. Text queries see every key of the sequence, picked or not.
    """
    found = [_picked(part.shape, few, at.start) for (part, at), few in zip(grid.grids, sizes, strict=True)]
    token, stands_for = (np.concatenate(parts) for parts in zip(*found, strict=True))
    by_count = np.argsort(-stands_for, kind="stable")
    text = grid.stays_dense().numpy().nonzero()[0]
    tokens = np.concatenate((token[by_count], text))
    key = Partition(len(tokens), block_size)

    starts = np.arange(0, len(tokens), block_size)
    each = np.concatenate((stands_for[by_count], np.ones(len(text))))
    log_mean = np.log(np.add.reduceat(each, starts) / key.sizes().numpy())
    log_mean[starts + key.sizes().numpy() > len(token)] = 0.0  # holds text
    # The same for every key it changes nothing.
    useful = bias and np.ptp(log_mean) > 0
    queries = slice(grid.video_start, grid.grids[-1].at.stop)
    subset = KeySubset(
        torch.from_numpy(tokens),
        torch.from_numpy(log_mean).float()[None, None] if useful else None,
        queries,
        grid.tokens,
    )
    return subset, BlockMask.full(Partition(queries.stop - queries.start, block_size), key)


def _picked(shape: Sizes, sizes: Sizes, start: int) -> tuple[np.ndarray, np.ndarray]:
    """The picked tokens of a grid that begins at ``start``, and for how many each stands: int64 ``[n]`` both."""
    picks, counts = zip(*(_picks(x, n) for x, n in zip(shape, sizes, strict=True)), strict=True)
    token = np.ravel_multi_index(np.meshgrid(*picks, indexing="ij"), shape).ravel() + start
    return token, np.einsum("i,j,k->ijk", *counts).ravel()


def _picks(length: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which positions of an axis are picked, and for how many each stands: int64 ``[count]`` both."""
    middle = (2 * np.arange(count) + 1) * length // (2 * count)
    return middle, np.bincount(np.arange(length) * count // length, minlength=count)
