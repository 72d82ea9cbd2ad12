"""A yardstick: blocks drawn at random. A method that does no better has learnt nothing from q and k."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.kernels.upload import upload
from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.options import order_option
from dittools.selection.ordered_blocks import ordered_blocks


@dataclass(frozen=True)
class RandomBlocks(Method):
    """Order: raster. Selector: chance, for each head; text and diagonal stay. Budget: the same for every row."""

    name: ClassVar[str] = "random"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "yardstick: random blocks beside text and diagonal"
    reads: ClassVar[tuple[str, ...]] = ()

    order: str = order_option("raster")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        heads, count = call.heads.total(q.shape[2]), blocks.partition.count
        drawn = torch.rand((1, heads, count, count), generator=call.generator)  # a batch shares it
        scores = upload(call.heads.of(drawn, 1), q.device)
        keep = blocks.select_topk(scores, call.density, force=blocks.force)
        return block_plan(blocks, keep)
