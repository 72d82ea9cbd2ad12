"""Radial attention: the farther two frames are apart, the narrower the band between them.

Source: Li et al., "Radial Attention", arXiv 2506.19852, and its code. With g the bit length of the distance |i - j| of
two frames, and P = 2^bit length of a frame's tokens: frames at most one apart see each other whole; farther ones keep
tokens at most max(decay P / 2^g, block) apart in their frames; and where P / 2^g is under a block, only every
(block 2^g / P)-th distance is kept at all. Without text in the sequence the first frame is kept for everyone. A block
of a band that is only sparsely hit is left out, by the original's rule: it stays when more than 0.6 of the key columns
that queries of it hit are hit by more than a third of a block of queries.

No decay keeps less than its floor, every band one block wide. A budget below that has no published mask: ours takes
frames nearest first, the own one, then the next ones and the first one, then bands of one block, nearest frames first.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from dittools.methods.options import number, switch
from dittools.methods.static import StaticVideo
from dittools.orders.raster import raster
from dittools.selectors.boxes import Boxes, boxes_of
from dittools.selectors.geometric import Pattern, picture_share
from dittools.selectors.levels import grow, up_to

AUTO = "auto"
# Levels: up to 1 the own frame, to 2 the next ones and the sink, to 3 bands one block wide; 3 + decay for wider ones,
# then the distances that are left out.
OWN, NEXT, FLOOR, LEFT_OUT = 1.0, 2.0, 3.0, 1e6
# A block stays when more than this share of its hit columns are hit by more than a third of a block of rows.
FULL_COLUMNS = 0.6


@dataclass(frozen=True)
class Radial(StaticVideo):
    """Order: raster. Selector: bands whose width halves as frame distance doubles. Budget: the decay."""

    name: ClassVar[str] = "radial"
    summary: ClassVar[str] = "a band whose width halves as the distance of frames doubles (Radial Attention)"
    decides: ClassVar[tuple[str, ...]] = ("decay",)

    decay: float | str = field(
        default=AUTO, metadata={"help": "width of the bands, 1 as in the paper; auto: what the sparsity allows"}
    )
    sink: bool | str = field(
        default=AUTO, metadata={"help": "keep the first frame for every query; auto: where the sequence has no text"}
    )

    def __post_init__(self):
        object.__setattr__(self, "decay", number("decay", self.decay))
        switch("sink", self.sink, auto=True)

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        order = raster(grid)
        boxes = boxes_of(grid, order, block_size, flat=True)
        sink = grid.text == 0 if self.sink == AUTO else self.sink
        if self.decay != AUTO:
            out = boxes.least(lambda rows: ~kept(boxes, rows, grid.frame, block_size, self.decay, sink))
            pattern, said = up_to(grid, order, out, 0, block_size), f"decay {self.decay:g}"
        else:
            level = boxes.least(lambda rows: levels(boxes, rows, grid.frame, block_size, sink))
            grown = grow(grid, order, level, sparsity, block_size)
            pattern, said = grown.pattern, _said(grown.level if grown.beyond is None else grown.beyond)
            least = up_to(grid, order, level, FLOOR, block_size).mask.keep[0, 0].numpy()
            floor = 1 - picture_share(least, grid, block_size)
            if sparsity > floor:
                said += f"; beyond {floor:.2f} skipped there is no published mask: nearest frames first is our own rule"
        return pattern.noting(f"{said}; {pattern.mask.density().item():.1%} of all pairs by blocks of {block_size}")


def kept(boxes: Boxes, rows: slice, frame: int, block_size: int, decay: float, sink: bool) -> np.ndarray:
    """Which pairs of boxes the published mask of a decay keeps, as the original decides by block.

    Args:
        boxes: of frames and raster indices in them.
        frame: tokens of a frame.

    Returns:
        bool ``[len(rows), N]``.
    """
    apart, whole, rare = _bands(boxes, rows, frame, block_size)
    width = np.floor(np.maximum(decay * whole, block_size))
    first, last = boxes.low[rows, 1, None], boxes.high[rows, 1, None]  # of the queries
    low, high = boxes.low[:, 1], boxes.high[:, 1]  # of the keys
    enough = block_size // 3 + 1  # queries that make a column full

    def columns(least: int) -> np.ndarray:
        """Keys of a box that at least so many queries of the other are in reach of."""
        margin = least - 1 - width
        return np.maximum(np.minimum(high, last - margin) - np.maximum(low, first + margin) + 1, 0)

    full = np.where(last - first + 1 >= enough, columns(enough), 0)
    return _near(boxes, apart, sink) | (~rare & (full > FULL_COLUMNS * columns(1)))


def _bands(boxes: Boxes, rows: slice, frame: int, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distance of frames, width of the band at decay 1, and which distances are left out: ``[len(rows), N]`` each."""
    apart = boxes.gap(0, rows)
    whole = 2.0 ** (frame.bit_length() - np.frexp(apart)[1])  # frexp's exponent is the bit length
    return apart, whole, (whole < block_size) & (apart % np.maximum(block_size // whole, 1) != 0)


def _near(boxes: Boxes, apart: np.ndarray, sink: bool) -> np.ndarray:
    """What every decay keeps whole."""
    return (apart <= 1) | (sink & (boxes.low[:, 0] == 0))


def levels(boxes: Boxes, rows: slice, frame: int, block_size: int, sink: bool) -> np.ndarray:
    """How far the mask has to grow to reach from some boxes to all: `FLOOR` + decay, or less for what is kept at any
    decay, nearest frames first, so that a near frame is never narrower than a far one.

    Args: as `kept`.

    Returns:
        ``[len(rows), N]``.
    """
    apart, whole, rare = _bands(boxes, rows, frame, block_size)
    gap = boxes.gap(1, rows)
    frames = boxes.high[-1, 0] + 1
    narrow = NEXT + np.minimum((apart - 1 + gap / (block_size + 1)) / frames, 1)
    bands = np.where(gap <= block_size, narrow, FLOOR + gap / whole)
    near = np.where(apart == 0, 0, OWN) + gap / frame
    return np.where(_near(boxes, apart, sink), near, np.where(rare, LEFT_OUT + gap / whole, bands))


def _said(level: float) -> str:
    if level < 0:
        return "the diagonal"
    if level <= OWN:
        return f"{level:.0%} of the width of the own frame"
    if level <= NEXT:
        return f"the own frame, and {level - OWN:.0%} of the width of the next ones and of the first"
    if level <= FLOOR:
        return f"near frames and the first one, and bands one block wide to {level - NEXT:.0%} of the distances"
    return f"decay {level - FLOOR:.3g}" if level < LEFT_OUT else "all bands and distances left out by them"
