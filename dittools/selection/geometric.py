"""Blocks chosen by where tokens are: bands of near coordinates, the first frame, text. Fixed for a grid.

A band keeps the block pairs that hold near tokens, nearest first, until the budget is used. Distances are
measured in original coordinates, whatever the order of positions: the distance of two blocks is that of their
nearest two tokens, so a band of width W keeps every token pair up to W apart. Ties are spread evenly over the
sequence, so that the budget is met to within one block pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.selection.areas import AreaPair, area_pairs, areas_of
from dittools.tokens import TokenGrid

FAR = 1 << 40
# How far from the asked sparsity a mask may land without a note.
TOLERANCE = 0.02


@dataclass(frozen=True, eq=False)
class Pattern:
    """A static candidate: an order, its mask, and the block of every token.

    Args:
        order: int32 ``[S]``, position -> token.
        mask: ``keep`` is ``[1, 1, M, M]``.
        block_of_token: int64 ``[S]``.
        notes: what a user should know about it.
    """

    order: torch.Tensor
    mask: BlockMask
    block_of_token: torch.Tensor
    notes: tuple[str, ...] = ()

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """Which tokens each query token attends to, both in token coordinates: bool ``[len(tokens), S]``."""
        return self.mask.keep[0, 0][self.block_of_token[tokens]][:, self.block_of_token]

    def to(self, device: torch.device) -> Pattern:
        """The same pattern on another device."""
        return Pattern(self.order.to(device), self.mask.to(device), self.block_of_token.to(device), self.notes)

    def noting(self, note: str) -> Pattern:
        """The same pattern with one more note, before the others."""
        return Pattern(self.order, self.mask, self.block_of_token, (note, *self.notes))


def band_pattern(
    grid: TokenGrid,
    order: torch.Tensor,
    coordinate: torch.Tensor,
    *,
    sparsity: float,
    block_size: int,
    sink: bool = True,
) -> Pattern:
    """Keep text, the diagonal, the first frame, and then the nearest block pairs, to ``1 - sparsity`` of the pairs
    of the picture with itself; of other kinds of pairs the nearest, each to the same share.

    Args:
        grid: layout of the S tokens.
        order: ``[S]``, position -> token.
        coordinate: integer coordinate of every video token, in raster order: ``[video]``. Pairs are near when
            their coordinates are. A token of a reference has that of its place in the picture.
        sparsity: share of the pairs to skip. Diagonal and sink are paid from the same budget, and kept even where
            they exceed it, except the sink: it gets at most half, its nearest patches first.
        block_size: positions in a block.
        sink: keep first-frame keys for every query of the picture.

    Returns:
        A pattern on the CPU whose kept share is 1 - sparsity to within half a block pair, or what is always kept
        if that is more.
    """
    picture = AreaPair(*areas_of(grid, block_size)[:1] * 2)
    keep = forced(grid, order, block_size)
    notes = []
    if sink:
        weight, mine = picture.weight, keep[picture.place]
        budget = picture.density(1 - sparsity) * weight.sum()
        token, is_video, starts = video_tokens(grid, order, block_size)
        first = np.logical_or.reduceat(is_video & (token < grid.frame), starts)[picture.key.blocks]
        sinks = np.broadcast_to(first, mine.shape) & ~mine
        patch_gap = _gaps(token % grid.frame, is_video, starts)[picture.place]
        allowed = min(budget / 2, budget - weight[mine].sum())
        if weight[sinks].sum() > allowed:
            notes.append(
                f"at sparsity {sparsity:g} the first frame would take more than half of the kept pairs: "
                "only its patches nearest to each query are always kept"
            )
        keep[picture.place] |= nearest(sinks, patch_gap, weight, allowed)
    keep = Band(grid, order, coordinate, block_size, keep).keep(1 - sparsity)
    return pattern_of(grid, order, keep, block_size, notes)


def video_tokens(grid: TokenGrid, order: torch.Tensor, block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By position ``[S]`` the raster index of its video token, for a reference of that at its place, 0 for text; and
    whether it has one; and the first position of each block.
    """
    token = order.long().numpy()
    return grid.places().numpy()[token], ~grid.stays_dense().numpy()[token], np.arange(0, grid.tokens, block_size)


def forced(grid: TokenGrid, order: torch.Tensor, block_size: int) -> np.ndarray:
    """What every static mask keeps: rows and columns of blocks with any text, and the diagonal: bool ``[M, M]``."""
    _, is_video, starts = video_tokens(grid, order, block_size)
    text = ~np.logical_and.reduceat(is_video, starts)
    return text[:, None] | text | np.eye(len(text), dtype=bool)


def picture_share(keep: np.ndarray, grid: TokenGrid, block_size: int) -> float:
    """Share of the picture's pairs with itself that a mask ``[M, M]`` keeps."""
    pair = AreaPair(*areas_of(grid, block_size)[:1] * 2)
    return float(pair.weight[keep[pair.place]].sum() / pair.weight.sum())


def pattern_of(
    grid: TokenGrid, order: torch.Tensor, keep: np.ndarray, block_size: int, notes: Sequence[str] = ()
) -> Pattern:
    """A pattern on the CPU from bool ``[M, M]`` over blocks of positions."""
    partition = Partition(grid.tokens, block_size)
    block_of_token = torch.empty(grid.tokens, dtype=torch.long)
    block_of_token[order.long()] = torch.arange(grid.tokens) // block_size
    mask = BlockMask(torch.from_numpy(keep)[None, None], partition, partition)
    return Pattern(order, mask, block_of_token, tuple(notes))


def nearest(candidates: np.ndarray, distance: np.ndarray, weight: np.ndarray, budget: float) -> np.ndarray:
    """The candidates ``[M, N]`` of smallest distance whose weight comes closest to the budget."""
    return Ranked.of(candidates, distance, weight).within(budget)


@dataclass(frozen=True, eq=False)
class Ranked:
    """Block pairs, nearest first: sorted once, cut at any budget.

    Args:
        pairs: row * N + column of each. total: weight of the first 0, 1, ... of them. blocks: (M, N).
    """

    pairs: np.ndarray
    total: np.ndarray
    blocks: tuple[int, int]

    @classmethod
    def of(cls, candidates: np.ndarray, distance: np.ndarray, weight: np.ndarray) -> Ranked:
        """The candidates ``[M, N]`` by distance."""
        pairs = np.flatnonzero(candidates)
        rows, columns = np.divmod(pairs, candidates.shape[1])
        # Multiples of the golden ratio fall evenly into [0, 1): cutting a tie anywhere takes pairs from
        # everywhere. Symmetric in row and column, so a pair and its mirror image enter together.
        spread = (rows + columns) * 0.6180339887498949 % 1
        pairs = pairs[np.lexsort((columns, spread, distance.flat[pairs]))]
        total = np.concatenate(([0.0], weight.flat[pairs].cumsum()))
        return cls(pairs, total, candidates.shape)

    def within(self, budget: float) -> np.ndarray:
        """As many of the first as come closest to a weight of ``budget``: bool ``[M, N]``."""
        count = int(np.abs(self.total - budget).argmin())
        kept = np.zeros(self.blocks, dtype=bool)
        kept.flat[self.pairs[:count]] = True
        return kept


class Band:
    """The nearest block pairs beside what is held anyway, for any number of budgets.

    Args: as `band_pattern`, and
        held: bool ``[M, M]``, paid first.
    """

    def __init__(
        self, grid: TokenGrid, order: torch.Tensor, coordinate: torch.Tensor, block_size: int, held: np.ndarray
    ):
        token, is_video, starts = video_tokens(grid, order, block_size)
        gaps = _gaps(coordinate.long().numpy()[token], is_video, starts)
        self._held, self._pairs = held, []
        for pair in area_pairs(areas_of(grid, block_size)):
            mine, weight = held[pair.place], pair.weight
            self._pairs.append((pair, Ranked.of(~mine, gaps[pair.place], weight), weight[mine].sum(), weight.sum()))

    def keep(self, density: float) -> np.ndarray:
        """The blocks that keep this share of each kind of pair, or what is held if that is more: bool ``[M, M]``."""
        keep = self._held.copy()
        for pair, ranked, paid, everything in self._pairs:
            keep[pair.place] |= ranked.within(pair.density(density) * everything - paid)
        return keep


def _gaps(values: np.ndarray, is_video: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Distance of the nearest two tokens of each two blocks ``[M, M]``, plus a fraction for that of their middles.

    ``values``: coordinate at every position ``[S]``, that of text ignored. ``starts``: first position of each block.
    """
    blocks = np.arange(len(values)) // (starts[1] if len(starts) > 1 else len(values))
    # Coordinates run upwards without holes inside a block, except where a frame ends: cut there into stretches.
    new = np.ones(len(values), dtype=bool)
    new[1:] = (blocks[1:] != blocks[:-1]) | (values[1:] < values[:-1]) | (is_video[1:] != is_video[:-1])
    begin = np.flatnonzero(new)
    end = np.append(begin[1:], len(values)) - 1
    stretch = np.arange(len(begin)) - np.searchsorted(blocks[begin], blocks[begin])  # rank within its block
    low = np.full((len(starts), stretch.max() + 1), FAR)
    high = np.full_like(low, -FAR)
    video = is_video[begin]
    low[blocks[begin][video], stretch[video]] = values[begin][video]
    high[blocks[begin][video], stretch[video]] = values[end][video]

    gap = np.full((len(starts), len(starts)), FAR, dtype=np.float64)
    for a in range(low.shape[1]):
        for b in range(low.shape[1]):
            apart = np.maximum(low[:, a, None] - high[:, b], low[:, b] - high[:, a, None])
            np.minimum(gap, np.maximum(apart, 0), out=gap)

    count = np.maximum(np.add.reduceat(is_video, starts, dtype=np.float64), 1)
    middle = np.add.reduceat(np.where(is_video, values, 0), starts, dtype=np.float64) / count
    return gap + np.abs(middle[:, None] - middle) / (np.abs(middle).max() * 2 + 1)
