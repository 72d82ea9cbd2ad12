"""What methods share whose mask is decided by the grid alone: the same for every head and step, and in later runs."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan
from dittools.orders.raster import raster
from dittools.scoped_cache import process_cached
from dittools.selection.geometric import Pattern
from dittools.tokens import TokenGrid


class Static(Method):
    """A method with one pattern a grid. Subclasses are frozen dataclasses and write `pattern`."""

    reads: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def pattern(self, grid: TokenGrid, sparsity: float, block_size: int) -> Pattern:
        """The order and mask of every call of a run, on the CPU."""

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        return call.run_cache.get_or_make((self, call.sparsity, q.device), lambda: self._plan(call, q.device))

    def _plan(self, call: AttentionCall, device: torch.device) -> Plan:
        return self.plan_of(_known(self, call.grid, call.sparsity, call.block_size), call.grid, device)

    def plan_of(self, pattern: Pattern, grid: TokenGrid, device: torch.device) -> Plan:
        """The plan of a pattern that all heads share."""
        in_order = torch.equal(pattern.order, raster(grid))
        pattern = pattern.to(device)
        order = None if in_order else pattern.order[None, None]
        return Plan(order, pattern.mask, notes=tuple(f"{self.name}: {note}" for note in pattern.notes))


@process_cached(8)
def _known(method: Static, grid: TokenGrid, sparsity: float, block_size: int) -> Pattern:
    """A pattern that an earlier run may have made: making one keeps the GPU waiting for 20 to 100 ms."""
    return method.pattern(grid, sparsity, block_size)
