"""Sparse-vDiT: every head has one of five habits, found once: all, nothing, near, same place, or a few keys for all.

Source: arXiv 2506.03065. The paper weighs error against sparsity with a fixed factor and keeps a head full when every
mode loses too much; here the budget of a layer is met exactly instead, at the least error plus measured cost. Widths
are not published: each mode comes in several, and `dittools calibrate` measures all of them. Heads of one mode share
one launch because one block-sparse call takes every head with its own mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Real
from typing import ClassVar

import torch

from dittools.blocks import BlockMask, Partition
from dittools.dense_rows import DenseRows
from dittools.methods.base import AttentionCall, Method, Plan, StayDense
from dittools.orders.raster import raster
from dittools.orders.token_major import token_major
from dittools.profile import misfit_of_call
from dittools.selectors.geometric import picture_share
from dittools.selectors.habits import Habit, from_section, habit_mask, head_costs, text_among_video
from dittools.selectors.modes import choose_modes
from dittools.selectors.packed import pack_bits, unpack_bits
from dittools.selectors.profiled import pool_columns
from dittools.tokens import TokenGrid
from dittools.upload import upload


@dataclass(frozen=True)
class SparseVDiT(Method):
    """Order: raster, or token-major for the multi-diagonal. Selector: full, skip, diagonal, multi-diagonal or stripe
    per head, with a width. Budget: one a layer. From a profile of errors and costs; the same in every step.
    """

    name: ClassVar[str] = "sparse_vdit"
    summary: ClassVar[str] = "per head: full, skip, diagonal, multi-diagonal or stripe, by measured error (Sparse-vDiT)"
    profile_use: ClassVar[str] = "needed"

    cost_weight: float = field(
        default=0.02, metadata={"help": "error, as a share of the output's power, that a head's dense time is worth"}
    )

    def __post_init__(self):
        if isinstance(self.cost_weight, bool) or not isinstance(self.cost_weight, Real) or not self.cost_weight >= 0:
            raise ValueError(f"cost_weight must be a number of at least 0, got {self.cost_weight!r}")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan | StayDense:
        if why := misfit_of_call(call.profile, call.grid):
            return StayDense(why)
        return call.remember(("sparse_vdit", call.layer, q.device), lambda: self.plan_layer(call, q.device))

    def plan_layer(self, call: AttentionCall, device: torch.device) -> Plan:
        """The plan of one layer, the same in every step and branch."""
        partition = Partition(call.grid.tokens, call.block_size)
        chosen, bits = call.keep((self, call.layer, call.sparsity), lambda: self._choose(call, partition))
        keep = unpack_bits(upload(bits, device), partition.count)[None]
        order, ordered = None, torch.tensor([habit.mode == "multi_diagonal" for habit in chosen])
        if ordered.any():
            orders = call.remember(("habit orders", device), lambda: _orders(call.grid, device))
            order = orders[upload(ordered.long(), device)][None]
        facts = {mode: torch.tensor(sum(h.mode == mode for h in chosen)) for mode in {h.mode: None for h in chosen}}
        return Plan(
            order, BlockMask(keep, partition, partition), facts, rows=_rows(call.grid, partition, chosen, device)
        )

    def _choose(self, call: AttentionCall, partition: Partition) -> tuple[list[Habit], torch.Tensor]:
        """The habit of every head of a layer, and their masks in bits ``[H, M, M / 8]``."""
        profile = call.profile
        habits, size = from_section(profile, "sparse_vdit")
        lanes = profile.model.layers, profile.model.heads
        error = profile.array("sparse_vdit.error", (*lanes, len(habits)), torch.float32)[call.layer].double()
        power = profile.array("sparse_vdit.power", lanes, torch.float32)[call.layer].double()
        blocks = Partition(profile.grid.tokens, size).count
        stored = profile.array("sparse_vdit.columns", (*lanes, blocks), torch.float32)[call.layer]
        columns = pool_columns(stored, size, call.block_size, profile.name)
        # Of text behind it, which may be longer or shorter in this call, no column is asked.
        columns = torch.nn.functional.pad(columns, (0, partition.count - columns.shape[-1]))

        def mask(head: int, habit: Habit) -> torch.Tensor:
            def make() -> torch.Tensor:
                return habit_mask(call.grid, partition, habit, columns[head])

            # Stripes are a head's own; the others are the same in every layer.
            return make() if habit.mode == "stripe" else call.remember(("habit", habit), make)

        density = [picture_share(mask(0, habit).numpy(), call.grid, call.block_size) for habit in habits]
        density = torch.tensor(density, dtype=torch.float64)
        cost = head_costs(profile, habits, density)
        loss = error / power.mean().clamp_min(torch.finfo(torch.float32).tiny) + self.cost_weight * cost
        chosen = [habits[c] for c in choose_modes(loss.numpy(), density.numpy(), call.density)]

        keep = torch.stack([mask(head, habit) for head, habit in enumerate(chosen)])
        return chosen, pack_bits(keep)


def _rows(grid: TokenGrid, partition: Partition, chosen: list[Habit], device: torch.device) -> DenseRows | None:
    """Text of skipped heads that shares a block with video."""
    skipped = torch.tensor([head for head, habit in enumerate(chosen) if habit.mode == "skip"], dtype=torch.long)
    among = text_among_video(grid, partition)
    if not len(skipped) or not len(among):
        return None
    return DenseRows(upload(among, device), upload(skipped, device), grid.tokens, partition.size)


def _orders(grid: TokenGrid, device: torch.device) -> torch.Tensor:
    """Raster and token-major: int32 ``[2, S]``."""
    return upload(torch.stack((raster(grid), token_major(grid))), device)
