"""A space-filling curve: one path through all tokens on which near positions are near in the picture.

Source: the generalised Hilbert curve for boxes of any size (J. Červený, 2019), which Jenga (arXiv 2505.16864) orders
its tokens by. A box is cut into parts that are walked one after another, each from a corner to the corner beside it
along its first axis, and parts of one size are drawn once.
"""

from __future__ import annotations

from math import prod

import numpy as np
import torch

from dittools.orders.raster import part_by_part
from dittools.tokens import TokenGrid

Sizes = tuple[int, int, int]


def curve(grid: TokenGrid) -> torch.Tensor:
    """Position -> token: int32 ``[S]`` on the CPU. Neighbours on the curve touch, at least by a corner. Text keeps
    its place, and a reference has a curve of its own.
    """
    return part_by_part(grid, _curve)


def _curve(shape: Sizes) -> torch.Tensor:
    # The walk leads along its first axis, which is best the longest; frames come last among equals.
    axes = sorted((2, 1, 0), key=lambda axis: -shape[axis])
    path = np.empty((prod(shape), 3), dtype=np.int64)
    path[:, axes] = _walk(tuple(shape[axis] for axis in axes), {})
    return torch.from_numpy(np.ravel_multi_index(path.T, shape))


def _walk(sizes: Sizes, drawn: dict[Sizes, np.ndarray]) -> np.ndarray:
    """All points of a box ``[n, 3]``, from the origin to the far end of the first axis."""
    if sizes not in drawn:
        if sorted(sizes)[1] == 1:  # a line, along whichever axis it has
            line = np.zeros((max(sizes), 3), dtype=np.int64)
            line[:, int(np.argmax(sizes))] = np.arange(max(sizes))
            drawn[sizes] = line
        else:
            drawn[sizes] = np.concatenate([_placed(*part, drawn) for part in _parts(*sizes)])
    return drawn[sizes]


def _placed(start: tuple[int, ...], ways: tuple[tuple[int, int], ...], drawn: dict) -> np.ndarray:
    """A part of a walk from ``start`` on; ``ways``: of each of its axes, which of the whole it runs along, and how far
    (below zero backwards)."""
    points = _walk(tuple(abs(length) for _, length in ways), drawn)
    out = np.empty_like(points)
    for column, (axis, length) in enumerate(ways):
        out[:, axis] = start[axis] + np.sign(length) * points[:, column]
    return out


def _parts(a: int, b: int, c: int) -> list[tuple[tuple[int, ...], tuple[tuple[int, int], ...]]]:
    """The parts of a box with sides a, b, c in the order of the walk: (start, ways)."""
    a1, b1, c1 = _half(a), _half(b), _half(c)
    a2, b2, c2 = a - a1, b - b1, c - c1
    A, B, C = 0, 1, 2
    if 2 * a > 3 * b and 2 * a > 3 * c:  # long: one half after the other
        return [((0, 0, 0), ((A, a1), (B, b), (C, c))), ((a1, 0, 0), ((A, a2), (B, b), (C, c)))]
    if 3 * b > 4 * c:  # flat in c: up, across, down
        return [
            ((0, 0, 0), ((B, b1), (C, c), (A, a1))),
            ((0, b1, 0), ((A, a), (B, b2), (C, c))),
            ((a - 1, b1 - 1, 0), ((B, -b1), (C, c), (A, -a2))),
        ]
    if 3 * c > 4 * b:  # flat in b: the same
        return [
            ((0, 0, 0), ((C, c1), (A, a1), (B, b))),
            ((0, 0, c1), ((A, a), (B, b), (C, c2))),
            ((a - 1, 0, c1 - 1), ((C, -c1), (A, -a2), (B, b))),
        ]
    return [  # like a cube: a corner, up its edge, back along the far side, down the edge, the last corner
        ((0, 0, 0), ((B, b1), (C, c1), (A, a1))),
        ((0, b1, 0), ((C, c), (A, a1), (B, b2))),
        ((0, b1 - 1, c - 1), ((A, a), (B, -b1), (C, -c2))),
        ((a - 1, b1, c - 1), ((C, -c), (A, -a2), (B, b2))),
        ((a - 1, b1 - 1, 0), ((B, -b1), (C, c1), (A, -a2))),
    ]


def _half(length: int) -> int:
    """Half of a side, even where it can be: a walk along an even side ends on the side where it began."""
    half = length // 2
    return half + 1 if half % 2 and length > 2 else half
