"""Vertical stripes: a few key blocks that every query attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dittools.kernels.masks.block_mask import Partition
from dittools.selection.areas import area_pairs, areas_of
from dittools.selection.profiled import always_kept
from dittools.tokens import TokenGrid


def stripes(grid: TokenGrid, partition: Partition, columns: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the key blocks that hold most, until the share of pairs comes nearest to what is asked.

    Args:
        partition: of the positions, in raster.
        columns: what each key block is worth, ``[M]``.
        density: share to keep of the pairs of each kind; text keeps and is kept by all.

    Returns:
        bool ``[M, M]`` on the CPU, at least one key block in every row.
    """
    budget = Budget.of(grid, partition, [density])
    return budget.always[0] | budget.heaviest(columns.cpu())[0]


@dataclass(frozen=True, eq=False)
class Budget:
    """What stripes of each of C densities may spend, whatever the head: made once a grid.

    Args:
        always: bool ``[C, M, M]``, rows and columns that no stripe decides.
        gain: fp64 ``[C, M]``, pairs that each key block adds to them.
        left: fp64 ``[C, areas]``, pairs to spend on the keys of each area.
        areas: their blocks.
    """

    always: torch.Tensor
    gain: torch.Tensor
    left: torch.Tensor
    areas: tuple[slice, ...]

    @classmethod
    def of(cls, grid: TokenGrid, partition: Partition, densities: Sequence[float]) -> Budget:
        """The budgets of stripes that keep these shares of the pairs, on the CPU."""
        areas = areas_of(grid, partition.size)
        always = torch.stack([always_kept(grid, partition, density) for density in densities])
        gain = torch.zeros(len(densities), partition.count, dtype=torch.float64)
        left = torch.zeros(len(densities), len(areas), dtype=torch.float64)
        for pair in area_pairs(areas):
            weight, held = torch.from_numpy(pair.weight), always[(..., *pair.place)]
            gain[:, pair.key.blocks] += (~held * weight).sum(1)
            spent = (held * weight).sum((1, 2))
            budget = torch.tensor([pair.density(density) for density in densities], dtype=torch.float64) * weight.sum()
            left[:, areas.index(pair.key)] += budget - spent
        return cls(always, gain, left, tuple(area.blocks for area in areas))

    def to(self, device: torch.device | str) -> Budget:
        """The same on another device."""
        return Budget(*(x.to(device) for x in (self.always, self.gain, self.left)), self.areas)

    def heaviest(self, columns: torch.Tensor) -> torch.Tensor:
        """The key blocks that hold most, as many as come nearest to each budget, and at least one of each area.

        Args:
            columns: what each key block is worth, ``[..., M]``, on the device of the budgets.

        Returns:
            bool ``[..., C, M]``. Nothing waits for the device.
        """
        first = torch.where(self.always.all(1), torch.inf, columns.double()[..., None, :])  # [..., C, M]
        kept = torch.zeros_like(first, dtype=torch.bool)
        for number, blocks in enumerate(self.areas):
            best = first[..., blocks].argsort(dim=-1, descending=True, stable=True)
            gain = self.gain[..., blocks].expand(best.shape).gather(-1, best)
            away = (gain.cumsum(-1) - self.left[:, number, None]).abs()
            taken = torch.arange(best.shape[-1], device=best.device) <= away.argmin(-1, keepdim=True)
            kept[..., blocks] = torch.zeros_like(taken).scatter_(-1, best, taken)
        return kept
