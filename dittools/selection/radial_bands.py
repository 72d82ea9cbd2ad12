"""Bands between frames whose width halves as their distance doubles, decided by block.

Source: Li et al., "Radial Attention", arXiv 2506.19852, and its code. With g the bit length of the distance |i - j| of
two frames, and P = 2^bit length of a frame's tokens: frames at most one apart see each other whole; farther ones keep
tokens at most max(decay P / 2^g, block) apart in their frames; and where P / 2^g is under a block, only every
(block 2^g / P)-th distance is kept at all. A block of a band that is only sparsely hit is left out, by the original's
rule: it stays when more than 0.6 of the key columns that queries of it hit are hit by more than a third of a block of
queries.
"""

from __future__ import annotations

import numpy as np

from dittools.selection.boxes import Boxes

# Levels: up to 1 the own frame, to 2 the next ones and the sink, to 3 bands one block wide; 3 + decay for wider ones,
# then the distances that are left out.
OWN, NEXT, FLOOR, LEFT_OUT = 1.0, 2.0, 3.0, 1e6
# A block stays when more than this share of its hit columns are hit by more than a third of a block of rows.
FULL_COLUMNS = 0.6


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


def what_is_kept(level: float) -> str:
    """Up to where a mask has grown, in words for a note."""
    if level < 0:
        return "the diagonal"
    if level <= OWN:
        return f"{level:.0%} of the width of the own frame"
    if level <= NEXT:
        return f"the own frame, and {level - OWN:.0%} of the width of the next ones and of the first"
    if level <= FLOOR:
        return f"near frames and the first one, and bands one block wide to {level - NEXT:.0%} of the distances"
    return f"decay {level - FLOOR:.3g}" if level < LEFT_OUT else "all bands and distances left out by them"
