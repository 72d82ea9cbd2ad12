"""A yardstick: blocks drawn at random. A method that does no better has learnt nothing from q and k."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan, block_plan
from dittools.methods.checks import one_of
from dittools.orders.named import ORDERS
from dittools.selectors.ordered_blocks import ordered_blocks
from dittools.upload import upload


@dataclass(frozen=True)
class RandomBlocks(Method):
    """Order: raster. Selector: chance, for each head; text and diagonal stay. Budget: the same for every row."""

    name: ClassVar[str] = "random"
    summary: ClassVar[str] = "yardstick: random blocks beside text and diagonal"

    order: str = field(default="raster", metadata={"help": f"token order: {', '.join(ORDERS)}"})

    def __post_init__(self):
        one_of("order", self.order, ORDERS)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        blocks = ordered_blocks(call, q.device, self.order)
        shape = 1, q.shape[2], blocks.partition.count, blocks.partition.count  # a batch shares it
        scores = upload(torch.rand(shape, generator=call.generator), q.device)
        keep = blocks.spend(scores, call.density, force=blocks.force)
        return block_plan(blocks, keep)
