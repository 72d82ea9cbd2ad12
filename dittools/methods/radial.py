"""Radial attention: the farther two frames are apart, the narrower the band between them.

Source: Li et al., "Radial Attention", arXiv 2506.19852, and its code. With g the bit length of the distance |i - j| of
two frames, and P = 2^bit length of a frame's tokens: frames at most one apart see each other whole; farther ones keep
tokens at most max(decay P / 2^g, block) apart in their frames; and where P / 2^g is under a block, only every
(block 2^g / P)-th distance is kept at all. Without text in the sequence the first frame is kept for everyone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from dittools.methods.options import number, switch
from dittools.methods.static import StaticVideo
from dittools.orders.raster import raster
from dittools.selectors.boxes import Boxes, boxes_of
from dittools.selectors.geometric import Pattern
from dittools.selectors.levels import grow, up_to

AUTO = "auto"
# Levels: below 1 what is kept at any decay, 1 + decay for the bands, then the distances that are left out.
BANDS, LEFT_OUT = 1.0, 1e6


@dataclass(frozen=True)
class Radial(StaticVideo):
    """Order: raster. Selector: bands whose width halves as frame distance doubles. Budget: the decay."""

    name: ClassVar[str] = "radial"
    summary: ClassVar[str] = "a band whose width halves as the distance of frames doubles (Radial Attention)"

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
        level = boxes.least(lambda rows: levels(boxes, rows, grid.frame, block_size, sink))
        if self.decay != AUTO:
            pattern, said = up_to(grid, order, level, BANDS + self.decay, block_size), f"decay {self.decay:g}"
        else:
            grown = grow(grid, order, level, sparsity, block_size)
            pattern, said = grown.pattern, _said(grown.level if grown.beyond is None else grown.beyond)
        return pattern.noting(f"{said}; {pattern.mask.density().item():.1%} of all pairs by blocks of {block_size}")


def levels(boxes: Boxes, rows: slice, frame: int, block_size: int, sink: bool) -> np.ndarray:
    """How far the mask has to grow to reach from some boxes to all: `BANDS` + decay, or less for what is kept at any
    decay, all of whose widths shrink together when a budget does not reach that far.

    Args:
        boxes: of frames and raster indices in them.
        frame: tokens of a frame.

    Returns:
        ``[len(rows), N]``.
    """
    apart, gap = boxes.gap(0, rows), boxes.gap(1, rows)
    whole = 2.0 ** (frame.bit_length() - np.frexp(apart)[1])  # band at decay 1: frexp's exponent is the bit length
    rare = (whole < block_size) & (apart % np.maximum(block_size // whole, 1) != 0)
    near = apart <= 1
    if sink:
        near |= boxes.low[:, 0] == 0
    bands = np.where(gap <= block_size, gap / block_size, BANDS + gap / whole)
    return np.where(near, gap / frame, np.where(rare, LEFT_OUT + gap / whole, bands))


def _said(level: float) -> str:
    if level < 0:
        return "the diagonal"
    if level <= BANDS:
        return f"{level:.0%} of the widths that any decay has"
    return f"decay {level - BANDS:.3g}" if level < LEFT_OUT else "all bands and distances left out by them"
