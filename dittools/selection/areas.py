"""Which blocks belong to the picture and which to its references: each kind of pair has a budget of its own.

An area is a run of blocks of one kind of part. A block that two kinds share belongs to the one with more tokens in it.
A block that holds text as well sees all and is seen by all; what it holds of an area counts in the area's budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import NamedTuple

import numpy as np
import torch

from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.upload import upload
from dittools.scoped_cache import process_cached
from dittools.tokens import TokenGrid

MOST_MIXED = 0.5
"""The share of a budget that blocks which hold text as well may take from the others."""


@dataclass(frozen=True, eq=False)
class Area:
    """Blocks of one kind.

    Args:
        kind: of the parts, as `dittools.tokens.KINDS`.
        blocks: a run of n of them.
        tokens: int64 ``[n]``, how many of that kind each holds.
        mixed: bool ``[n]``, which hold tokens that stay dense as well.
    """

    kind: str
    blocks: slice
    tokens: np.ndarray
    mixed: np.ndarray
    _sizes: dict = field(default_factory=dict, init=False, repr=False)

    @property
    def share_mixed(self) -> float:
        """Share of its tokens that are in mixed blocks."""
        return float(self.tokens[self.mixed].sum() / self.tokens.sum())

    def sizes(self, device: torch.device) -> torch.Tensor:
        """``tokens`` on a device. It is shared: do not write into it."""
        if device not in self._sizes:
            with torch.inference_mode(False):
                self._sizes[device] = upload(torch.from_numpy(self.tokens), device)
        return self._sizes[device]


class AreaPair(NamedTuple):
    """Queries of one area and keys of one."""

    query: Area
    key: Area

    @property
    def place(self) -> tuple[slice, slice]:
        """Rows and columns of a block mask."""
        return self.query.blocks, self.key.blocks

    @property
    def weight(self) -> np.ndarray:
        """Query-key pairs in each block pair: fp64 ``[m, n]``."""
        return self.query.tokens[:, None].astype(np.float64) * self.key.tokens

    @property
    def mixed(self) -> float:
        """Share of its pairs in mixed blocks."""
        return 1 - (1 - self.query.share_mixed) * (1 - self.key.share_mixed)

    def density(self, asked: float) -> float:
        """The share of its pairs to keep where ``asked`` is the share of all: more where mixed blocks take so much
        that the others would be left less than `MOST_MIXED` of theirs.
        """
        return max(asked, self.mixed + (1 - MOST_MIXED) * asked * (1 - self.mixed)) if self.mixed else asked


@process_cached(32)
def areas_of(grid: TokenGrid, block_size: int) -> tuple[Area, ...]:
    """The areas of a grid, the picture first. Every order leaves each part in its place, so they hold in all."""
    partition = Partition(grid.tokens, block_size)
    held = {kind: _within(at, partition) for kind, at in area_segments(grid)}  # tokens of each kind in each block
    counts = np.stack(list(held.values()))  # [kinds, M]
    mixed = counts.sum(0) < partition.sizes().numpy()
    owner = np.where(counts.any(0), counts.argmax(0), -1)
    found = []
    for number, kind in enumerate(held):
        mine = np.flatnonzero(owner == number)
        if len(mine):
            run = slice(int(mine[0]), int(mine[-1]) + 1)
            found.append(Area(kind, run, counts[number, run], mixed[run]))
    return tuple(found)


def area_segments(grid: TokenGrid) -> list[tuple[str, slice]]:
    """Kind and tokens of each area, the picture first: parts of a kind that are side by side share their budgets."""
    found = []
    for kind, placed in groupby(grid.grids, lambda one: one.part.kind):
        at = [one.at for one in placed]
        found.append((kind, slice(at[0].start, at[-1].stop)))
    return found


def alone(areas: Sequence[Area], blocks: int) -> bool:
    """Whether there is one area, of all the blocks and nothing but its own tokens in them."""
    return len(areas) == 1 and len(areas[0].tokens) == blocks and not areas[0].mixed.any()


def area_pairs(areas: Sequence[Area]) -> Iterator[AreaPair]:
    """Each kind of pair that a budget is for; picture with picture comes first."""
    return (AreaPair(*pair) for pair in product(areas, areas))


def _within(at: slice, partition: Partition) -> np.ndarray:
    """Tokens of a run in each block: int64 ``[M]``."""
    start = np.arange(partition.count) * partition.size
    return np.clip(np.minimum(start + partition.size, at.stop) - np.maximum(start, at.start), 0, None)
