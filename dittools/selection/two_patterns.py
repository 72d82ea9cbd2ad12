"""Two static patterns side by side, so that every head takes its own by number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import torch

from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.probe.dispatch import pack_rows
from dittools.parts import part
from dittools.selection.geometric import Pattern


@dataclass(frozen=True, eq=False)
class TwoPatterns:
    """Two patterns that heads pick from by number, made once a run.

    Args:
        orders: int32 ``[2, S]``.
        counts, indices: the lists of their masks, int32 ``[2, M]`` and ``[2, M, M]``.
        density: fp32 ``[2]``.
        keep: bool ``[2 M, M]``, one mask below the other.
        block_of_token, row_of_token: int64 ``[2, S]``, block of each token and its row of ``keep``.
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
    def of(cls, one: Pattern, two: Pattern) -> TwoPatterns:
        """Of two patterns over the same blocks, on one device."""
        masks, partition = (one.mask, two.mask), one.mask.query
        counts, indices = zip(*(mask.kv_blocks() for mask in masks), strict=True)
        rows = one.block_of_token, partition.count + two.block_of_token
        return cls(
            torch.stack((one.order, two.order)),
            torch.cat(counts, 1)[0],
            torch.cat(indices, 1)[0],
            torch.cat([mask.density().flatten() for mask in masks]),
            torch.cat([mask.keep[0, 0] for mask in masks]),
            torch.stack((one.block_of_token, two.block_of_token)),
            torch.stack(rows),
            partition,
            tuple(dict.fromkeys(one.notes + two.notes)),
        )

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """What `probe_errors` takes: `Pattern.rows` of both as bits, int32 ``[2, words, len(tokens)]``."""
        rows = self.row_of_token.index_select(1, tokens).flatten()
        return pack_rows(self.keep.index_select(0, rows).view(2, len(tokens), -1), self.block_of_token)

    def select(self, second: torch.Tensor) -> tuple[torch.Tensor | None, BlockMask]:
        """Order and mask in which each head runs one of the two; no order where no head needs one.

        Nothing is read back from the device, except on the CPU, where it costs nothing to see that no head needs
        an order.

        Args:
            second: bool ``[B, H]``, which heads run the second.
        """
        which, lanes = second.flatten().long(), second.shape

        def of(x: torch.Tensor) -> torch.Tensor:
            return x.index_select(0, which).view(*lanes, *x.shape[1:])

        order = None
        if second.device.type != "cpu" or second.any():
            with part("order"):
                order = of(self.orders)
        lists, density = (of(self.counts), of(self.indices)), of(self.density)
        # Kept blocks that nobody asks for are never made.
        mean = partial(self._mean, second)
        return order, BlockMask.from_kv_blocks(*lists, self.partition, self.partition, density, mean)

    def _mean(self, second: torch.Tensor) -> torch.Tensor:
        """The mean mask of all heads: fp32 ``[M, M]``."""
        one, two = self.keep_as_numbers.chunk(2)
        return one.lerp(two, second.float().mean())

    @cached_property
    def keep_as_numbers(self) -> torch.Tensor:
        """``keep`` as fp32."""
        return self.keep.float()
