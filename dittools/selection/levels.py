"""Static masks that grow with one knob: how large it must be for each block pair, and where the budget stops it.

A radius, a decay or a window that only ever adds pairs as it grows gives every block pair a level: the smallest knob
at which one of its token pairs is kept. The knob alone then makes the mask, or the budget does: it takes whole levels
while it can and, where one more would be too much, those block pairs of it that have the nearest middles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from dittools.selection.areas import area_pairs, areas_of
from dittools.selection.geometric import TOLERANCE, Pattern, forced, nearest, pattern_of, video_tokens
from dittools.tokens import TokenGrid


@dataclass(frozen=True, eq=False)
class NestedMask:
    """A mask that a budget made.

    Args:
        pattern: the mask and its order.
        level: the last level that is kept whole; -inf when none is.
        beyond: the level kept in part, or None.
        share: how much of it is kept.
    """

    pattern: Pattern
    level: float
    beyond: float | None
    share: float


def mask_at(grid: TokenGrid, order: torch.Tensor, level: np.ndarray, most: float, block_size: int) -> Pattern:
    """The mask of a knob that was set: every pair of at most that level, text and the diagonal.

    Args:
        level: ``[M, M]``.
        most: the knob.
    """
    keep = forced(grid, order, block_size) | (level <= most)
    return pattern_of(grid, order, keep, block_size)


def mask_to_density(
    grid: TokenGrid, order: torch.Tensor, level: np.ndarray, sparsity: float, block_size: int
) -> NestedMask:
    """The mask that keeps ``1 - sparsity`` of each kind of pair, lowest levels first; text and the diagonal always.

    A whole number of levels is taken when that lands within half the tolerance.

    Args:
        level: ``[M, M]``; pairs of level `NEVER` come last.
        sparsity: share of the pairs to skip.

    Returns:
        Of the picture with itself ``level``, ``beyond`` and ``share``.
    """
    keep, apart = forced(grid, order, block_size), _apart(grid, order, block_size)
    said = []
    for pair in area_pairs(areas_of(grid, block_size)):
        density = pair.density(1 - sparsity)
        keep[pair.place], *reached = _grown(
            keep[pair.place], level[pair.place], apart[pair.place], pair.weight, density
        )
        said.append(reached)
    return NestedMask(pattern_of(grid, order, keep, block_size), *said[0])


def _grown(
    keep: np.ndarray, level: np.ndarray, apart: np.ndarray, weight: np.ndarray, density: float
) -> tuple[np.ndarray, float, float | None, float]:
    """What is kept of one kind of pair, and of `NestedMask` the level, the one beyond and its share."""
    everything = weight.sum()
    budget = density * everything
    free = ~keep
    levels, which = np.unique(level[free], return_inverse=True)
    each = np.bincount(which.reshape(-1), weights=weight[free], minlength=len(levels))
    total = weight[keep].sum() + np.concatenate(([0.0], each.cumsum()))
    whole = int(np.abs(total - budget).argmin())
    beyond, share = None, 0.0
    if abs(total[whole] - budget) > TOLERANCE / 2 * everything:
        whole = int(np.searchsorted(total, budget)) - 1
        if whole >= 0:
            beyond = float(levels[whole])
            part = nearest(free & (level == beyond), apart, weight, budget - total[whole])
            share = weight[part].sum() / each[whole]
            keep = keep | part
    last = float(levels[whole - 1]) if whole > 0 else -np.inf
    return keep | (free & (level <= last)), last, beyond, share


def _apart(grid: TokenGrid, order: torch.Tensor, block_size: int) -> np.ndarray:
    """Distance of the middles of two blocks in frames, rows and columns: fp64 ``[M, M]``; text counts as nowhere."""
    token, is_video, starts = video_tokens(grid, order, block_size)
    at = grid.positions().numpy()[token] * is_video[:, None]
    count = np.maximum(np.add.reduceat(is_video, starts, dtype=np.int64), 1)
    middle = np.add.reduceat(at, starts, axis=0) / count[:, None]
    return sum((middle[:, None, axis] - middle[:, axis]) ** 2 for axis in range(3)) ** 0.5
