"""Reference frames that see all and are seen by all: which they are, and the masks of so many.

Source: Ding et al., "Efficient-vDiT", arXiv 2502.06155. With k references among F frames, 2kF - k^2 + F - k of the F^2
frame pairs are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from dittools.orders.raster import raster
from dittools.selection.boxes import Boxes, boxes_of
from dittools.selection.geometric import Pattern, picture_share
from dittools.selection.levels import mask_at, mask_to_density
from dittools.selection.searched import reference_counts, to_budget
from dittools.tokens import TokenGrid

if TYPE_CHECKING:
    from dittools.methods.base import AttentionCall


class Choice(NamedTuple):
    """What a search gives one layer.

    Args:
        count: reference frames.
        share: of the pairs, to which their mask is moved; None where it is right as it is.
        aim: what the layer is to keep.
    """

    count: int
    share: float | None
    aim: float


class FrameTiles:
    """Masks in which frames see themselves and reference frames, on one grid in raster order.

    Args:
        grid: layout of the tokens.
        block_size: tokens in a block.
    """

    def __init__(self, grid: TokenGrid, block_size: int):
        self._grid, self._size = grid, block_size

    @cached_property
    def _order(self) -> torch.Tensor:
        return raster(self._grid)

    @cached_property
    def _boxes(self) -> Boxes:
        return boxes_of(self._grid, self._order, self._size, flat=True)

    def _levels(self, count: int) -> np.ndarray:
        """The first rank of `tile_ranks` in each block pair: fp32 ``[M, M]``."""
        rank, frame = tile_ranks(self._grid.frames, count), self._boxes.low[:, 0]
        return self._boxes.least(lambda rows: rank[frame[rows]][:, frame])

    def counted(self, count: int) -> Pattern:
        """The mask of so many references."""
        return mask_at(self._grid, self._order, self._levels(count), 1, self._size)

    def moved(self, count: int, share: float) -> Pattern:
        """The mask of so many references, made smaller or larger until it keeps this share of the picture's pairs."""
        return mask_to_density(self._grid, self._order, self._levels(count), 1 - share, self._size).pattern

    def share(self, count: int) -> float:
        """What the mask of so many references keeps of the picture's pairs."""
        return picture_share(self.counted(count).mask.keep[0, 0].numpy(), self._grid, self._size)

    def grown(self, sparsity: float) -> tuple[Pattern, str]:
        """The most references that fit, evenly spread, and the nearest part of one more; and how many they are."""
        fits, too_many = 0, self._grid.frames + 1
        while too_many - fits > 1:
            k = (fits + too_many) // 2
            fits, too_many = (k, too_many) if self.share(k) <= 1 - sparsity else (fits, k)
        grown = mask_to_density(self._grid, self._order, self._levels(fits), sparsity, self._size)
        more = f", and the nearest {grown.share:.0%} of what one more adds" if grown.beyond is not None else ""
        return grown.pattern, f"{fits + max(0, int(grown.level) - 1) if grown.level > 0 else 0} reference frames{more}"


def search_references(call: AttentionCall, layers: Sequence[int]) -> dict[int, Choice]:
    """For each of these layers, which share a budget, what the search in the call's profile gives it."""
    frames = FrameTiles(call.grid, call.block_size)
    shares = [frames.share(k) for k in range(call.grid.frames + 1)]
    counts = reference_counts(call.profile, layers, call.density, shares)
    kept = to_budget([shares[k] for k in counts], call.density)
    return {
        layer: Choice(k, share, shares[k] if share is None else share)
        for layer, k, share in zip(layers, counts, kept, strict=True)
    }


def reference_frames(frames: int, k: int) -> list[int]:
    """k frames spread evenly: the middles of k equal stretches."""
    return [(2 * i + 1) * frames // (2 * k) for i in range(k)]


def tile_ranks(frames: int, k: int) -> np.ndarray:
    """For each frame pair, when it is kept: fp32 ``[F, F]``; 0 on the diagonal, 1 for the rows and columns of k
    evenly spread references, 2 and on for one more reference each, the frame farthest from those before it.
    """
    chosen = reference_frames(frames, k)
    rank = np.full((frames, frames), np.inf, dtype=np.float32)
    for reference in chosen:
        rank[reference] = rank[:, reference] = 1
    at = 1
    while len(chosen) < frames:
        left = [f for f in range(frames) if f not in chosen]
        # With none chosen yet the middle comes first.
        far = max(left, key=lambda f: (min((abs(f - c) for c in chosen), default=-abs(2 * f + 1 - frames)), -f))
        chosen.append(far)
        at += 1
        rank[far] = np.minimum(rank[far], at)
        rank[:, far] = np.minimum(rank[:, far], at)
    np.fill_diagonal(rank, 0)
    return rank
