"""Sparse-vDiT: every head has one of five patterns, found once: all, nothing, near, same place, or a few keys for all.

Source: arXiv 2506.03065. The paper weighs error against sparsity with a fixed factor and keeps a head full when every
mode loses too much; here the budget of a layer is met exactly instead, at the least error plus measured cost. Widths
are not published: each mode comes in several, and `dittools calibrate` measures all of them. Heads of one mode share
one launch because one block-sparse call takes every head with its own mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.attention_profile import misfit_of_call
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.upload import upload
from dittools.methods.base import AttentionCall, Method, Plan, StayDense
from dittools.methods.options import option
from dittools.selection.head_patterns import choose_patterns, pattern_orders, skipped_text_rows
from dittools.selection.packed import unpack_bits


@dataclass(frozen=True)
class SparseVDiT(Method):
    """Order: raster, or token-major for the multi-diagonal. Selector: full, skip, diagonal, multi-diagonal or stripe
    per head, with a width. Budget: one a layer. From a profile of errors and costs; the same in every step.
    """

    name: ClassVar[str] = "sparse_vdit"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "per head: full, skip, diagonal, multi-diagonal or stripe, by measured error (Sparse-vDiT)"
    profile_use: ClassVar[str] = "needed"

    cost_weight: float = option(
        0.02, "error, as a share of the output's power, that a head's dense time is worth", min=0
    )

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan | StayDense:
        if why := misfit_of_call(call.profile, call.grid):
            return StayDense(why)
        return call.run_cache.get_or_make(
            ("sparse_vdit", call.layer, q.device, call.heads.mine), lambda: self.plan_layer(call, q.device)
        )

    def plan_layer(self, call: AttentionCall, device: torch.device) -> Plan:
        """The plan of one layer, the same in every step and branch."""
        partition = Partition(call.grid.tokens, call.block_size)
        key = self, call.layer, call.sparsity
        chosen, bits = call.profile_cache.get_or_make(key, lambda: choose_patterns(call, partition, self.cost_weight))
        every = dict.fromkeys(pattern.mode for pattern in chosen)
        chosen = call.heads.pick(chosen)
        keep = unpack_bits(upload(call.heads.of(bits, 0), device), partition.count)[None]
        order, ordered = None, torch.tensor([pattern.mode == "multi_diagonal" for pattern in chosen])
        if ordered.any():
            orders = call.run_cache.get_or_make(("pattern orders", device), lambda: pattern_orders(call.grid, device))
            order = orders[upload(ordered.long(), device)][None]
        modes = [pattern.mode for pattern in chosen]
        facts = {mode: torch.tensor(modes.count(mode)) for mode in every}
        rows = skipped_text_rows(call.grid, partition, chosen, device)
        return Plan(order, BlockMask(keep, partition, partition), facts, rows=rows)
