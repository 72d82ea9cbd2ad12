"""Clips of tokens in raster order, found in a sequence by the coordinates that a pipeline gives each token."""

from __future__ import annotations

from typing import NamedTuple

import torch


class Clip(NamedTuple):
    """Tokens that follow each other: as a grid (frames, height, width), or None where they are in no raster."""

    tokens: int
    shape: tuple[int, int, int] | None


def clips(coordinates: torch.Tensor) -> list[Clip]:
    """The clips of a sequence, in its order. Waits for the device.

    Frames of one size whose time goes on belong to one clip.

    Args:
        coordinates: (time, row, column) of each token: ``[3, S]``.
    """
    time, rows, columns = coordinates.float().cpu()
    starts = ((time[1:] != time[:-1]) | (rows[1:] < rows[:-1])).nonzero().flatten() + 1
    found: list[list[_Frame]] = []
    for when, *place in zip(*(axis.tensor_split(starts) for axis in (time, rows, columns)), strict=True):
        frame = _Frame(float(when[0]), *place, raster(*place))
        if found and frame.follows(found[-1][-1]):
            found[-1].append(frame)
        else:
            found.append([frame])
    return [
        Clip(sum(len(frame.rows) for frame in clip), (len(clip), *clip[0].size) if clip[0].size else None)
        for clip in found
    ]


class _Frame(NamedTuple):
    time: float
    rows: torch.Tensor
    columns: torch.Tensor
    size: tuple[int, int] | None  # height, width

    def follows(self, other: _Frame) -> bool:
        """Whether it is the next frame of the same clip."""
        return (
            self.size is not None
            and self.size == other.size
            and self.time > other.time
            and torch.equal(self.rows, other.rows)
            and torch.equal(self.columns, other.columns)
        )


def raster(rows: torch.Tensor, columns: torch.Tensor) -> tuple[int, int] | None:
    """(height, width) of tokens with these rows and columns ``[n]``, None where they are in no raster order."""
    other = (rows != rows[0]).nonzero()
    width = int(other[0]) if len(other) else len(rows)
    height = len(rows) // width
    if height * width != len(rows):
        return None
    row = torch.equal(rows, rows[::width].repeat_interleave(width))
    return (height, width) if row and torch.equal(columns, columns[:width].repeat(height)) else None
