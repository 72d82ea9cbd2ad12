"""PAROAttention: give every head the order of axes in which its map falls into blocks, then keep the heavy blocks.

Source: arXiv 2506.16054. Orders and attention mass come from `dittools calibrate`; nothing is decided at run time.
The paper keeps blocks whose summed attention exceeds a threshold and tunes the threshold: here the budget finds it,
one for all heads of a layer, so heads keep what they hold. Forced tail blocks were a limit of the published kernel:
here a tail is kept for its own sake only where it is ragged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.attention_profile import misfit_of_call
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.upload import upload
from dittools.methods.base import AttentionCall, Method, Plan, StayDense, compact, mask_plan
from dittools.methods.options import scope_option
from dittools.orders.axes import AXES, axis_order
from dittools.selection.paro_tables import Tables
from dittools.selection.profiled import with_other_text
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class PARO(Method):
    """Order: one of six axis orders per head. Selector: measured block mass, by group of steps. Budget: one
    threshold for a layer. From a profile.
    """

    name: ClassVar[str] = "paro"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "per head: the axis order that groups its mass, then the heaviest blocks (PAROAttention)"
    profile_use: ClassVar[str] = "needed"

    scope: str = scope_option("layer")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan | StayDense:
        if why := misfit_of_call(call.profile, call.grid):
            return StayDense(why)
        tables = Tables(call.profile)
        group = tables.groups[call.step]
        # Masks cost a sort of masses: the plan of the present group of steps is kept, and no other.
        key = "paro", call.layer, call.sparsity, q.device, call.heads.mine
        if key not in call.run_cache or call.run_cache[key][0] != group:
            call.run_cache[key] = group, compact(self._plan(call, tables, group, q.device), q.shape, call.layers)
        return call.run_cache[key][1]()

    def _plan(self, call: AttentionCall, tables: Tables, group: int, device: torch.device) -> Plan:
        """The plan of a layer in a group of steps."""
        axes, partition = call.heads.of(tables.axes[call.layer], 0), Partition(call.grid.tokens, call.block_size)
        orders = call.run_cache.get_or_make(("axis orders", device), lambda: _orders(call.grid, device))
        own = call.run_cache.get_or_make(
            ("paro order", call.layer, device, call.heads.mine), lambda: orders[upload(axes.long(), device)][None]
        )
        keep = tables.keep(group, call.layer, call.sparsity, call.block_size, self.scope, device)
        keep = call.heads.of(keep, 1)
        if call.grid != call.profile.grid:
            keep = with_other_text(keep, call.grid, partition)
        return mask_plan(keep, own, partition, {"not in raster": axes.count_nonzero()}, ())


def _orders(grid: TokenGrid, device: torch.device) -> torch.Tensor:
    """All axis orders: int32 ``[6, S]``."""
    return upload(torch.stack([axis_order(grid, axes) for axes in AXES]), device)
