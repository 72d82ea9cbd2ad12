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

from dittools.blocks import BlockMask, Partition
from dittools.methods.base import AttentionCall, Method, Plan
from dittools.orders.axes import AXES, axis_order
from dittools.selectors.budget import SCOPES
from dittools.selectors.geometric import TOLERANCE
from dittools.selectors.paro_tables import Tables
from dittools.selectors.profiled import always_kept


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

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        tables, device = Tables(call.profile), q.device
        group = tables.groups[call.step]
        axes = tables.axes[call.layer].tolist()
        order = call.remember(("paro order", call.layer, device), lambda: _orders(call, axes).to(device))

        def keep() -> torch.Tensor:
            return tables.keep(group, call.layer, call.sparsity, call.block_size, self.scope, device)

        # Masks from masses cost a sort, and are as few as the masses; packed ones cost nothing to unpack.
        key = ("paro", group, call.layer, call.sparsity, device)
        chosen = call.remember(key, keep) if tables.mass is not None else keep()
        partition = Partition(call.grid.tokens, call.block_size)
        notes = call.remember("paro notes", lambda: _notes(call, partition))
        return Plan(order, BlockMask(chosen, partition, partition), {"not in raster": order_count(axes)}, notes)


def order_count(axes: list[int]) -> torch.Tensor:
    return torch.tensor(sum(number != 0 for number in axes))


def _notes(call: AttentionCall, partition: Partition) -> tuple[str, ...]:
    """Known without waiting for the device: text alone may be more than the budget."""
    force = always_kept(call.grid, partition, call.density)[None, None]
    skipped = 1 - BlockMask(force, partition, partition).density().item()
    if skipped >= call.sparsity - TOLERANCE:
        return ()
    return (f"paro keeps text dense: at most {skipped:.2f} of the pairs can be skipped, {call.sparsity:g} was asked",)


def _orders(call: AttentionCall, axes: list[int]) -> torch.Tensor:
    made = {n: call.remember(("axes", n), lambda n=n: axis_order(call.grid, AXES[n])) for n in set(axes)}
    return torch.stack([made[n] for n in axes])[None]  # [1, H, S]
