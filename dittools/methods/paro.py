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
from dittools.profile import Profile
from dittools.selectors.budget import SCOPES, spend
from dittools.selectors.geometric import TOLERANCE
from dittools.selectors.profiled import always_kept, decode_mass, pool_mass, unpack


@dataclass(frozen=True)
class PARO(Method):
    """Order: one of six axis orders per head. Selector: measured block mass, by group of steps. From a profile."""

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
            return tables.keep(group, call, self.scope, device)

        # Masks from masses cost a sort, and are as few as the masses; packed ones cost nothing to unpack.
        key = ("paro", group, call.layer, call.sparsity, device)
        chosen = call.remember(key, keep) if tables.mass is not None else keep()
        partition = Partition(call.grid.tokens, call.block_size)
        notes = call.remember("paro notes", lambda: _notes(call, partition))
        return Plan(order, BlockMask(chosen, partition, partition), {"not in raster": order_count(axes)}, notes)


class Tables:
    """What a profile says for this method, checked."""

    def __init__(self, profile: Profile):
        self.profile, section = profile, profile.methods["paro"]
        model, steps = profile.model, profile.made.steps
        self.groups, self.block_size = section.get("groups"), section.get("block_size")
        good = isinstance(self.groups, list) and len(self.groups) == steps and self.block_size in (16, 32, 64, 128)
        if not good or not all(type(g) is int and 0 <= g < steps for g in self.groups):
            raise ValueError(f"{profile.name} is damaged: method paro needs a group for each step and a block size")
        self.partition = Partition(profile.grid.tokens, self.block_size)
        lanes = (max(self.groups) + 1, model.layers, model.heads, self.partition.count)
        self.axes = profile.array("paro.axes", (model.layers, model.heads), torch.uint8)
        if self.axes.max() >= len(AXES):
            raise ValueError(f"{profile.name} is damaged: it names axis order {int(self.axes.max())} of {len(AXES)}")
        self.mass, self.bits = None, {}
        if "paro.mass" in profile.arrays:
            self.mass = profile.array("paro.mass", (*lanes, self.partition.count), torch.uint8)
        else:
            width = -(-self.partition.count // 8)
            self.bits = {
                float(asked): profile.array(f"paro.keep.{asked}", (*lanes, width), torch.uint8)
                for asked in section.get("sparsities", [])
            }

    def keep(self, group: int, call: AttentionCall, scope: str, device: torch.device) -> torch.Tensor:
        """Kept blocks of one layer: bool ``[1, H, M, M]``."""
        if self.mass is None:
            return self._stored(group, call, device)
        factor, rest = divmod(call.block_size, self.block_size)
        if rest:
            raise ValueError(f"{self.profile.name} has blocks of {self.block_size}, this run has {call.block_size}")
        mass = decode_mass(self.mass[group, call.layer].to(device), self.partition)
        partition = Partition(call.grid.tokens, call.block_size)
        sizes, force = partition.sizes(device), always_kept(call.grid, partition, call.density).to(device)
        return spend(pool_mass(mass, factor)[None], sizes, sizes, call.density, scope=scope, force=force)

    def _stored(self, group: int, call: AttentionCall, device: torch.device) -> torch.Tensor:
        near = min(self.bits, key=lambda has: abs(has - call.sparsity), default=None)
        if call.sparsity == 0:
            return torch.ones(1, 1, self.partition.count, self.partition.count, dtype=torch.bool, device=device)
        if near is None or abs(near - call.sparsity) > 0.02 or self.block_size != call.block_size:
            has = ", ".join(f"{value:g}" for value in self.bits)
            raise ValueError(
                f"{self.profile.name} holds masks of sparsity {has} in blocks of {self.block_size}, and this run asks "
                f"for {call.sparsity:g} in blocks of {call.block_size}: ask for one of these, or calibrate again"
            )
        return unpack(self.bits[near][group, call.layer].to(device), self.partition.count)[None]


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
