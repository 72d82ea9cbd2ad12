"""Sparse-vDiT's calibration: the error of every habit of every head on sampled rows, and what habits cost here.

Source: arXiv 2506.03065, section 3.3.
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.blocks import BlockMask, Partition
from dittools.calibrate.base import RowCalibrator, Size, column_mass
from dittools.calibrate.cost import kernel_cost
from dittools.kernels.pooling import reduce_blocks
from dittools.runtime import Heard
from dittools.selectors.geometric import Pattern
from dittools.selectors.habits import HABITS, habit_mask, habit_order
from dittools.selectors.sampled import sampled_errors


class SparseVDiT(RowCalibrator):
    method, rounds = "sparse_vdit", 2

    def __init__(self, size: Size):
        super().__init__(size)
        lanes = (size.layers, size.heads)
        self.error = torch.zeros(*lanes, len(HABITS), dtype=torch.float64)
        self.power = torch.zeros(lanes, dtype=torch.float64)
        self.columns: torch.Tensor | None = None
        self.common: list[tuple[int, Pattern]] | None = None
        self.like: torch.Tensor | None = None

    def look(self, heard: Heard, rows: torch.Tensor, round: int) -> None:
        partition = Partition(heard.grid.tokens, self.size.block_size)
        if round == 0:
            held = reduce_blocks(column_mass(heard, rows), partition, 1, torch.sum).cpu()
            if self.columns is None:
                self.columns = torch.zeros(self.size.layers, *held.shape)
            self.columns[heard.layer] += held
            return
        self.like = heard.q[:1, :0]
        if self.common is None:
            self.common = self._common(heard, partition)
        q, k, v = heard.q, heard.k, heard.v
        masks = [pattern.rows(rows) for _, pattern in self.common]
        nothing = torch.zeros_like(masks[0])  # what a head loses that gives zeros: all its output
        found = sampled_errors(q, k, v, rows, [nothing, *masks], heard.scale).sum(1).cpu().double()  # [C, H]
        self.power[heard.layer] += found[0]
        for (habit, _), error in zip(self.common, found[1:], strict=True):
            self.error[heard.layer, :, habit] += error
        self._stripes(heard, rows, partition)

    def _common(self, heard: Heard, partition: Partition) -> list[tuple[int, Pattern]]:
        """Habits that look alike in every head; a full head loses nothing."""
        found = []
        for n, habit in enumerate(HABITS):
            if habit.mode not in ("full", "stripe"):
                keep = habit_mask(heard.grid, partition, habit, torch.zeros(partition.count))[None, None]
                order = habit_order(heard.grid, habit)
                blocks = torch.empty(heard.grid.tokens, dtype=torch.long)
                blocks[order.long()] = torch.arange(heard.grid.tokens) // partition.size
                found.append((n, Pattern(order, BlockMask(keep, partition, partition), blocks).to(heard.q.device)))
        return found

    def _stripes(self, heard: Heard, rows: torch.Tensor, partition: Partition) -> None:
        numbers = [n for n, habit in enumerate(HABITS) if habit.mode == "stripe"]
        block = torch.arange(heard.grid.tokens, device=rows.device) // partition.size
        for h in range(self.size.heads):
            kept = [habit_mask(heard.grid, partition, HABITS[n], self.columns[heard.layer, h]) for n in numbers]
            masks = [keep.to(rows.device)[block[rows]][:, block] for keep in kept]
            one = (x[:, :, h : h + 1] for x in (heard.q, heard.k, heard.v))
            found = sampled_errors(*one, rows, masks, heard.scale).sum((1, 2)).cpu().double()
            self.error[heard.layer, h, numbers] += found

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        columns = self.columns / self.columns.sum(-1, keepdim=True)
        cost = kernel_cost(self.like, Partition(self.grid.tokens, self.size.block_size), self.grid)
        section = {
            "by_step": False,
            "block_size": self.size.block_size,
            "habits": [list(habit) for habit in HABITS],
            "cost": cost,
        }
        return section, {
            "error": self.mean(self.error).float(),
            "power": self.mean(self.power).float(),
            "columns": columns,
        }
