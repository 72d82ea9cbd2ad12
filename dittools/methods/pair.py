"""Two static patterns side by side, so that every head takes its own by number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from dittools.blocks import BlockMask, Partition
from dittools.methods.base import Plan
from dittools.parts import inner_part
from dittools.selectors.geometric import Pattern


@dataclass(frozen=True, eq=False)
class Pair:
    """What plans of two patterns are picked from, made once a run.

    Args:
        orders: int32 ``[2, S]``.
        counts, indices: the lists of their masks, int32 ``[2, M]`` and ``[2, M, M]``.
        density: fp32 ``[2]``.
        keep: bool ``[1 + 2 M, M]``: a row that keeps everything, then one mask below the other.
        block_of_token, row_of_token: int64 ``[3, S]``, block of each token and its row of ``keep``: for everything,
            for the one and for the other.
        partition: S positions in M blocks.
        notes: of both.
    """

    orders: torch.Tensor
    counts: torch.Tensor
    indices: torch.Tensor
    density: torch.Tensor
    keep: torch.Tensor
    block_of_token: torch.Tensor
    row_of_token: torch.Tensor
    partition: Partition
    notes: tuple[str, ...]

    @classmethod
    def of(cls, one: Pattern, two: Pattern) -> Pair:
        """Of two patterns over the same blocks, on one device."""
        masks, partition = (one.mask, two.mask), one.mask.query
        counts, indices = zip(*(mask.lists() for mask in masks), strict=True)
        any_block = torch.zeros_like(one.block_of_token)
        rows = any_block, 1 + one.block_of_token, 1 + partition.count + two.block_of_token
        keeps = [mask.keep[0, 0] for mask in masks]
        return cls(
            torch.stack((one.order, two.order)),
            torch.cat(counts, 1)[0],
            torch.cat(indices, 1)[0],
            torch.cat([mask.density().flatten() for mask in masks]),
            torch.cat((torch.ones_like(keeps[0][:1]), *keeps)),
            torch.stack((any_block, one.block_of_token, two.block_of_token)),
            torch.stack(rows),
            partition,
            tuple(dict.fromkeys(one.notes + two.notes)),
        )

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """What `errors_of` takes: everything, then `Pattern.rows` of both: bool ``[3, len(tokens), S]``."""
        rows = self.row_of_token.index_select(1, tokens).flatten()
        kept = self.keep.index_select(0, rows).view(3, len(tokens), -1)  # [3, n, M]
        return kept.gather(2, self.block_of_token[:, None].expand(-1, len(tokens), -1))

    def pick(self, second: torch.Tensor, facts: dict[str, torch.Tensor]) -> Plan:
        """The plan in which each head runs one of the two.

        Args:
            second: bool ``[B, H]``, which heads run the second.
            facts: for the summary.

        Nothing is read back from the device, except on the CPU, where it costs nothing to see that no head needs
        an order.
        """
        which, lanes = second.flatten().long(), second.shape

        def of(x: torch.Tensor) -> torch.Tensor:
            return x.index_select(0, which).view(*lanes, *x.shape[1:])

        order = None
        if second.device.type != "cpu" or second.any():
            with inner_part("order"):
                order = of(self.orders)
        lists = of(self.counts), of(self.indices)
        mask = BlockMask.from_lists(*lists, self.partition, self.partition, of(self.density))
        return Plan(order, mask, facts, self.notes, fold=lambda: partial(self.pick, second, facts))
