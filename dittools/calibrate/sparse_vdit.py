"""Sparse-vDiT's calibration: the error of every pattern of every head on sampled rows, and what patterns cost here.

Source: arXiv 2506.03065, section 3.3.
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.calibrate.base import RowCalibrator
from dittools.calibrate.cost import kernel_cost
from dittools.calibrate.key_groups import KeyGroups, errors_by_group, mass_by_group
from dittools.kernels.masks.block_mask import Partition
from dittools.observer import AttentionEvent
from dittools.selection.head_patterns import HEAD_PATTERNS, pattern_mask, pattern_order
from dittools.selection.stripes import Budget
from dittools.tokens import TokenGrid


class SparseVDiT(RowCalibrator):
    method, rounds = "sparse_vdit", 2
    error: torch.Tensor | None = None
    power: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    blocks: KeyGroups | None = None  # of raster
    bands: list[Bands]
    stripes: Stripes | None = None
    patterns: torch.Tensor | None = None  # their numbers, in the order in which they are measured
    like: torch.Tensor | None = None

    def prepare(self, event: AttentionEvent) -> None:
        partition, device = Partition(event.grid.tokens, self.size.block_size), event.q.device
        self.blocks = KeyGroups.of(torch.arange(partition.length) // partition.size, device)
        self.stripes = None
        self.like = torch.empty(1, 0, *event.q.shape[2:], dtype=event.q.dtype, device=device)
        if self.columns is None:
            lanes = (self.size.layers, self.size.heads)
            self.columns = torch.zeros(*lanes, partition.count, device=device)
            self.error = torch.zeros(*lanes, len(HEAD_PATTERNS), dtype=torch.float64, device=device)
            self.power = torch.zeros(lanes, dtype=torch.float64, device=device)

    def look(self, event: AttentionEvent, rows: torch.Tensor, round: int) -> None:
        if round == 0:
            self.columns[event.layer] += mass_by_group(event, rows, self.blocks)
            return
        if self.stripes is None:
            of = event.grid, Partition(event.grid.tokens, self.size.block_size), event.q.device
            self.bands = [Bands(*of, modes) for modes in (("skip", "diagonal"), ("multi_diagonal",))]
            self.stripes = Stripes(*of)
            patterns = torch.tensor([n for part in (self.bands[0], self.stripes, self.bands[1]) for n in part.patterns])
            self.patterns = patterns.to(event.q.device)
        raster, across = self.bands
        near = raster.kept(rows)  # [C, n, M]
        nothing = torch.zeros_like(near[:1])  # what a head loses that gives zeros: all its output
        shared = torch.cat((nothing, near)).expand(self.size.heads, -1, -1, -1)
        striped = self.stripes.kept(self.columns[event.layer], self.blocks.of_token[rows])
        found = errors_by_group(event, rows, self.blocks, torch.cat((shared, striped), 1)).sum(1).double()  # [C, H]
        found = torch.cat((found, errors_by_group(event, rows, across.blocks, across.kept(rows)).sum(1)))
        self.power[event.layer] += found[0]
        self.error[event.layer].index_add_(1, self.patterns, found[1:].T)

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        columns = (self.columns / self.columns.sum(-1, keepdim=True)).cpu()
        cost = kernel_cost(self.like, Partition(self.grid.tokens, self.size.block_size), self.grid)
        habits = [list(pattern) for pattern in HEAD_PATTERNS]
        errors = {name: self.mean(sums).float() for name, sums in (("error", self.error), ("power", self.power))}
        section = self.section(block_size=self.size.block_size, habits=habits, cost=cost)
        return section, {**errors, "columns": columns}


def _numbers(*modes: str) -> list[int]:
    return [n for n, pattern in enumerate(HEAD_PATTERNS) if pattern.mode in modes]


class Bands:
    """Patterns of these modes, all in one order and alike in every head.

    Attributes:
        patterns: their numbers.
        blocks: of keys, in their order.
    """

    def __init__(self, grid: TokenGrid, partition: Partition, device: torch.device | str, modes: tuple[str, ...]):
        self.patterns = _numbers(*modes)
        anything = torch.zeros(partition.count)
        masks = [pattern_mask(grid, partition, HEAD_PATTERNS[n], anything) for n in self.patterns]
        self._keep = torch.stack(masks).to(device)  # [C, M, M]
        block = torch.empty(partition.length, dtype=torch.long)
        order = pattern_order(grid, HEAD_PATTERNS[self.patterns[0]]).long()
        block[order] = torch.arange(partition.length) // partition.size
        self.blocks = KeyGroups.of(block, device)
        # Text of a skipped head sees all, also beside video in a block.
        skip = torch.tensor([HEAD_PATTERNS[n].mode == "skip" for n in self.patterns])
        self._dense = (skip[:, None] & grid.stays_dense()).to(device) if skip.any() else None  # [C, S]

    def kept(self, rows: torch.Tensor) -> torch.Tensor:
        """Blocks that these query tokens see: bool ``[C, n, M]``."""
        keep = self._keep[:, self.blocks.of_token[rows]]
        return keep if self._dense is None else keep | self._dense[:, rows, None]


class Stripes:
    """Stripes of every width, which are a head's own.

    Attributes:
        patterns: their numbers.
    """

    def __init__(self, grid: TokenGrid, partition: Partition, device: torch.device | str):
        self.patterns = _numbers("stripe")
        self._budget = Budget.of(grid, partition, [HEAD_PATTERNS[n].width for n in self.patterns]).to(device)

    def kept(self, columns: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Blocks that queries in these blocks, int64 ``[n]``, see: bool ``[H, C, n, M]``.

        ``columns``: what each key block is worth to each head, ``[H, M]``.
        """
        return self._budget.always[:, own] | self._budget.heaviest(columns)[:, :, None]
