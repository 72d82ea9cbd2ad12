"""PAROAttention: give every head the order of axes in which its map falls into blocks, then keep the heavy blocks.

Source: arXiv 2506.16054. Orders and attention mass come from `dittools calibrate`; nothing is decided at run time.
The paper keeps blocks whose summed attention exceeds a threshold and tunes the threshold: here the budget finds it,
one for all heads of a layer, so heads keep what they hold. Forced tail blocks were a limit of the published kernel:
here a tail is kept for its own sake only where it is ragged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.blocks import Partition
from dittools.methods.base import AttentionCall, Method, Plan, StayDense, mask_plan, resting
from dittools.orders.axes import AXES, axis_order
from dittools.profile import misfit_of_call
from dittools.selectors.budget import SCOPES
from dittools.selectors.paro_tables import Tables
from dittools.selectors.profiled import with_other_text
from dittools.tokens import TokenGrid
from dittools.upload import upload


@dataclass(frozen=True)
class PARO(Method):
    """Order: one of six axis orders per head. Selector: measured block mass, by group of steps. Budget: one
    threshold for a layer. From a profile.
    """

    name: ClassVar[str] = "paro"
    summary: ClassVar[str] = "per head: the axis order that groups its mass, then the heaviest blocks (PAROAttention)"
    profile_use: ClassVar[str] = "needed"

    scope: str = field(default="layer", metadata={"help": "who shares one threshold: layer, head or row"})

    def __post_init__(self):
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan | StayDense:
        if why := misfit_of_call(call.profile, call.grid):
            return StayDense(why)
        tables = Tables(call.profile)
        group = tables.groups[call.step]
        # Masks cost a sort of masses: the plan of the present group of steps is kept.
        known = call.remember(("paro", call.layer, call.sparsity, q.device), dict)
        if group not in known:
            known.clear()
            known[group] = resting(self._plan(call, tables, group, q.device), q, call.layers)
        return known[group]()

    def _plan(self, call: AttentionCall, tables: Tables, group: int, device: torch.device) -> Plan:
        """The plan of a layer in a group of steps."""
        axes, partition = tables.axes[call.layer], Partition(call.grid.tokens, call.block_size)
        orders = call.remember(("axis orders", device), lambda: _orders(call.grid, device))
        own = call.remember(("paro order", call.layer, device), lambda: orders[upload(axes.long(), device)][None])
        keep = tables.keep(group, call.layer, call.sparsity, call.block_size, self.scope, device)
        if call.grid != call.profile.grid:
            keep = with_other_text(keep, call.grid, partition)
        return mask_plan(keep, own, partition, {"not in raster": order_count(axes.tolist())}, ())


def order_count(axes: list[int]) -> torch.Tensor:
    return torch.tensor(sum(number != 0 for number in axes))


def _orders(grid: TokenGrid, device: torch.device) -> torch.Tensor:
    """All axis orders: int32 ``[6, S]``."""
    return upload(torch.stack([axis_order(grid, axes) for axes in AXES]), device)
