"""Neighbourhood windows: which keys a query sees along each axis, by window, stride and dilation.

Source: Generalized Neighborhood Attention (arXiv 2504.16922) and NATTEN: queries are grouped by stride, a group sees
what its leader sees, and a window that would leave the grid is moved inwards, never cut. Sliding tile attention
(arXiv 2502.04507) is the same on a grid of tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows on a grid, as masks of blocks.

    Args:
        grid: layout of the tokens.
        order: ``[S]``, position -> token.
        boxes: of the order's blocks.
        seen: for an axis and a window on it, which keys each query sees: bool ``[X, X]``.
        block_size: positions in a block.
        unit: tokens a unit of the window holds on each axis.
    """

    grid: TokenGrid
    order: torch.Tensor
    boxes: Boxes
    seen: Callable[[int, int], np.ndarray]
    block_size: int
    unit: Axes = (1, 1, 1)

    def place_in(self, path: Sequence[Axes]) -> np.ndarray:
        """Index of the first window of a path under which two blocks have tokens that see each other: fp32 ``[M, M]``,
        `NEVER` for none.

        Args:
            path: windows, none smaller than the one before it on any axis.
        """
        tables = []
        for axis in range(self.boxes.axes):
            first = np.full(self.seen(axis, path[-1][axis]).shape, NEVER, dtype=np.float32)
            for place in reversed(range(len(path))):
                size = path[place][axis]
                if place == 0 or size != path[place - 1][axis]:
                    first[self.seen(axis, size)] = place
            tables.append(first)
        between = self.boxes.tables(tables)
        return self.boxes.least(lambda rows: np.maximum.reduce(between(rows)))

    def fixed(self, window: Axes) -> Pattern:
        """The pattern of a window that was asked for, whatever its density; its note says both densities."""
        pattern = mask_at(self.grid, self.order, self.place_in([window]), 0, self.block_size)
        return self._noting(pattern, self._said(window))

    def grown(self, path: Sequence[Axes], sparsity: float) -> Pattern:
        """The pattern of the window on a path that skips what was asked; where none does, with part of the next one."""
        grown = mask_to_density(self.grid, self.order, self.place_in(path), sparsity, self.block_size)
        said = "the diagonal" if grown.level < 0 else self._said(path[int(min(grown.level, len(path) - 1))])
        if grown.beyond is not None:
            more = self._size(path[int(grown.beyond)]) if np.isfinite(grown.beyond) else "a window without dilation"
            said += f", and the nearest {grown.share:.0%} of what {more} adds"
        return self._noting(grown.pattern, said)

    def _noting(self, pattern: Pattern, said: str) -> Pattern:
        return pattern.noting(
            f"{said}; {pattern.mask.density().item():.1%} of all pairs by blocks of {self.block_size}"
        )

    def _said(self, window: Axes) -> str:
        density = float(np.prod([self.seen(axis, size).mean() for axis, size in enumerate(window)]))
        return f"window {self._size(window)}, {density:.1%} of the video's pairs by token"

    def _size(self, window: Axes) -> str:
        text = "x".join(map(str, window))
        return text if self.unit == (1, 1, 1) else f"{text} tiles of {'x'.join(map(str, self.unit))}"
