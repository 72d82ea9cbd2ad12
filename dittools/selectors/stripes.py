"""Vertical stripes: a few key blocks that every query attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dittools.blocks import Partition
from dittools.selectors.profiled import always_kept
from dittools.tokens import TokenGrid


def stripes(grid: TokenGrid, partition: Partition, columns: torch.Tensor, density: float) -> torch.Tensor:
    """Keep the key blocks that hold most, until the share of pairs comes nearest to what is asked.

    Args:
        partition: of the positions, in raster.
        columns: what each key block is worth, ``[M]``.
        density: share of the pairs to keep; rows and columns of text count towards it.

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
        left: fp64 ``[C, 1]``, pairs to spend.
    """

    always: torch.Tensor
    gain: torch.Tensor
    left: torch.Tensor

    @classmethod
    def of(cls, grid: TokenGrid, partition: Partition, densities: Sequence[float]) -> Budget:
        """The budgets of stripes that keep these shares of the pairs, on the CPU."""
        sizes = partition.sizes().double()
        always = torch.stack([always_kept(grid, partition, density) for density in densities])
        gain = (~always * sizes[:, None]).sum(1) * sizes
        left = torch.tensor(densities, dtype=torch.float64) * partition.length**2
        return cls(always, gain, (left - (always * sizes[:, None] * sizes).sum((1, 2)))[:, None])

    def to(self, device: torch.device | str) -> Budget:
        """The same on another device."""
        return Budget(*(x.to(device) for x in (self.always, self.gain, self.left)))

    def heaviest(self, columns: torch.Tensor) -> torch.Tensor:
        """The key blocks that hold most, as many as come nearest to each budget, and at least one.

        Args:
            columns: what each key block is worth, ``[..., M]``, on the device of the budgets.

        Returns:
            bool ``[..., C, M]``. Nothing waits for the device.
        """
        first = torch.where(self.always.all(1), torch.inf, columns.double()[..., None, :])  # [..., C, M]
        best = first.argsort(dim=-1, descending=True, stable=True)
        away = (self.gain.expand(best.shape).gather(-1, best).cumsum(-1) - self.left).abs()
        taken = torch.arange(best.shape[-1], device=best.device) <= away.argmin(-1, keepdim=True)
        return torch.zeros_like(taken).scatter_(-1, best, taken)
