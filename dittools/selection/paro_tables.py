"""PAROAttention's part of a profile: axis orders, and block masses or masks by group of steps."""

from __future__ import annotations

import torch

from dittools.attention_profile import Profile
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.upload import upload
from dittools.orders.axes import AXES
from dittools.selection.areas import areas_of
from dittools.selection.budget import select_topk_blocks_by_area
from dittools.selection.packed import unpack_bits
from dittools.selection.profiled import always_kept, decode_mass, pool_mass


class Tables:
    """What a profile says for method paro, checked.

    groups: of each step. axes: uint8 ``[layers, heads]``, indices into `AXES`. mass: bytes ``[groups, layers, heads,
    M, M]``, or None where masks in bits stand in, by sparsity.
    """

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

    def keep(
        self, group: int, layer: int, sparsity: float, block_size: int, scope: str, device: torch.device
    ) -> torch.Tensor:
        """Kept blocks of one layer: bool ``[1, H, M, M]``. ``scope``: as in `select_topk_blocks`.

        Raises:
            ValueError: when the profile has no masks for this sparsity or block size.
        """
        if self.mass is None:
            return self._stored(group, layer, sparsity, block_size, device)
        factor, rest = divmod(block_size, self.block_size)
        if rest:
            raise ValueError(
                f"{self.profile.name} has blocks of {self.block_size}, and this run has {block_size}: "
                f"use block_size {self.block_size}"
            )
        mass = decode_mass(upload(self.mass[group, layer], device), self.partition)
        partition = Partition(self.partition.length, block_size)
        sizes = partition.sizes(device)
        force = upload(always_kept(self.profile.grid, partition, 1 - sparsity), device)
        areas = areas_of(self.profile.grid, block_size)
        return select_topk_blocks_by_area(
            pool_mass(mass, factor)[None], sizes, areas, 1 - sparsity, scope=scope, force=force
        )

    def _stored(self, group: int, layer: int, sparsity: float, block_size: int, device: torch.device) -> torch.Tensor:
        near = min(self.bits, key=lambda has: abs(has - sparsity), default=None)
        if sparsity == 0:
            return torch.ones(1, 1, self.partition.count, self.partition.count, dtype=torch.bool, device=device)
        if near is None or abs(near - sparsity) > 0.02 or self.block_size != block_size:
            has = ", ".join(f"{value:g}" for value in self.bits)
            raise ValueError(
                f"{self.profile.name} holds masks of sparsity {has} in blocks of {self.block_size}, and this run asks "
                f"for {sparsity:g} in blocks of {block_size}: ask for one of these, or calibrate again"
            )
        return unpack_bits(upload(self.bits[near][group, layer], device), self.partition.count)[None]
