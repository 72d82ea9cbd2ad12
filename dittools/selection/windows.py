"""Neighbourhood windows: which keys a query sees along each axis, by window, stride and dilation.

Source: Generalized Neighborhood Attention (arXiv 2504.16922) and NATTEN: queries are grouped by stride, a group sees
what its leader sees, and a window that would leave the grid is moved inwards, never cut. Sliding tile attention
(arXiv 2502.04507) is the same on a grid of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dittools.selection.boxes import NEVER, Boxes
from dittools.selection.geometric import Pattern
from dittools.selection.levels import mask_at, mask_to_density
from dittools.tokens import TokenGrid

Axes = tuple[int, ...]


def window_starts(length: int, window: int, stride: int = 1) -> np.ndarray:
    """First key that each query of an axis sees: int64 ``[length]``; it sees ``window`` keys from there.

    An even window has one key more before its leader than after it.

    Args:
        length: positions on the axis.
        window: keys, 1 to ``length``.
        stride: queries that share a window, 1 to ``window``.
    """
    query = np.arange(length)
    leader = np.minimum(query // stride * stride + stride // 2, length - 1)
    return np.clip(leader - window // 2, 0, length - window)


def sees(length: int, window: int, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """Which keys each query of an axis sees: bool ``[length, length]``.

    With a dilation only positions of the same remainder see each other, in windows of their own.

    Args: as `window_starts`; ``window * dilation`` is at most ``length``.
    """
    seen = np.zeros((length, length), dtype=bool)
    for first in range(min(dilation, length)):
        at = np.arange(first, length, dilation)
        start = window_starts(len(at), window, stride)[:, None]
        rank = np.arange(len(at))
        seen[np.ix_(at, at)] = (start <= rank) & (rank < start + window)
    return seen


def fitted(shape: Axes, window: Axes, stride: Axes, dilation: Axes) -> tuple[Axes, Axes, Axes]:
    """Window, stride and dilation cut down to a grid: no axis is asked for more than it has."""
    dilation = tuple(min(d, x) for x, d in zip(shape, dilation, strict=True))
    window = tuple(min(w, x // d) for x, w, d in zip(shape, window, dilation, strict=True))
    return window, tuple(min(s, w) for s, w in zip(stride, window, strict=True)), dilation


def growing(least: Axes, most: Axes, shape: Axes, step: Axes = (1, 1, 1)) -> list[Axes]:
    """Windows from ``least`` to ``most``, each a step larger on the axis where it covers least of ``shape``."""
    path = [least]
    while path[-1] != most:
        window = path[-1]
        short = [axis for axis in range(len(most)) if window[axis] < most[axis]]
        axis = min(short, key=lambda axis: window[axis] / shape[axis])
        path.append((*window[:axis], min(window[axis] + step[axis], most[axis]), *window[axis + 1 :]))
    return path


def place_in(path: Sequence[Axes], boxes: Boxes, seen: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Index of the first window of a path under which two blocks have tokens that see each other: fp32 ``[M, M]``,
    `NEVER` for none.

    Args:
        path: windows, none smaller than the one before it on any axis.
        boxes: what the blocks hold.
        seen: for an axis and a window on it, which keys each query sees: bool ``[X, X]``.
    """
    tables = []
    for axis in range(boxes.axes):
        last = path[-1][axis]
        first = np.full(seen(axis, last).shape, NEVER, dtype=np.float32)
        for place in reversed(range(len(path))):
            size = path[place][axis]
            if place == 0 or size != path[place - 1][axis]:
                first[seen(axis, size)] = place
        tables.append(first)
    between = boxes.tables(tables)
    return boxes.least(lambda rows: np.maximum.reduce(between(rows)))


def set_window(
    grid: TokenGrid,
    order: torch.Tensor,
    boxes: Boxes,
    window: Axes,
    seen: Callable[[int, int], np.ndarray],
    block_size: int,
    unit: Axes = (1, 1, 1),
) -> Pattern:
    """The pattern of a window that was asked for, whatever its density; its note says both densities.

    Args:
        order: ``[S]``, position -> token.
        boxes: of the order's blocks.
        window: keys on each axis, in units.
        seen: for an axis and a window on it, which keys each query sees: bool ``[X, X]``.
        unit: tokens a unit of the window holds on each axis.
    """
    level = place_in([window], boxes, seen)
    pattern = mask_at(grid, order, level, 0, block_size)
    return pattern.noting(_said(grid, window, seen, unit) + _by_block(pattern, block_size))


def grown_window(
    grid: TokenGrid,
    order: torch.Tensor,
    boxes: Boxes,
    path: Sequence[Axes],
    seen: Callable[[int, int], np.ndarray],
    sparsity: float,
    block_size: int,
    unit: Axes = (1, 1, 1),
) -> Pattern:
    """The pattern of the window on a path that skips what was asked; where none does, with part of the next one.

    Args: as `set_window`, and a path of windows as `place_in`.
    """
    grown = mask_to_density(grid, order, place_in(path, boxes, seen), sparsity, block_size)
    reached = path[int(min(max(grown.level, 0), len(path) - 1))]
    said = "the diagonal" if grown.level < 0 else _said(grid, reached, seen, unit)
    if grown.beyond is not None:
        more = _sizes(path[int(grown.beyond)], unit) if np.isfinite(grown.beyond) else "a window without dilation"
        said += f", and the nearest {grown.share:.0%} of what {more} adds"
    return grown.pattern.noting(said + _by_block(grown.pattern, block_size))


def token_density(grid: TokenGrid, window: Axes, seen: Callable[[int, int], np.ndarray]) -> float:
    """Share of the video's token pairs that are in a window."""
    return float(np.prod([seen(axis, size).mean() for axis, size in enumerate(window)]))


def _said(grid: TokenGrid, window: Axes, seen: Callable[[int, int], np.ndarray], unit: Axes) -> str:
    return f"window {_sizes(window, unit)}, {token_density(grid, window, seen):.1%} of the video's pairs by token"


def _sizes(window: Axes, unit: Axes) -> str:
    text = "x".join(map(str, window))
    return text if unit == (1, 1, 1) else f"{text} tiles of {'x'.join(map(str, unit))}"


def _by_block(pattern: Pattern, block_size: int) -> str:
    return f"; {pattern.mask.density().item():.1%} of all pairs by blocks of {block_size}"
