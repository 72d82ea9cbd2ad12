"""A static order cut into blocks: what every call of a run shares, made once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from dittools.kernels.masks.block_mask import Partition
from dittools.orders.named import named_order
from dittools.selection.areas import Area, alone, areas_of
from dittools.selection.budget import select_topk_blocks_by_area
from dittools.tokens import TokenGrid


@dataclass(frozen=True, eq=False)
class OrderedBlocks:
    """Blocks of positions in one order that all heads share.

    Args:
        order: int32 ``[1, 1, S]``, position -> token; None is raster.
        partition: S positions in blocks, M of them.
        sizes: int64 ``[M]``, positions in each block.
        text: bool ``[M]``, blocks that hold any text, or other tokens that stay dense.
        force: bool ``[1, 1, M, M]``, rows and columns of text, and the diagonal.
        force_on_cpu: the same where it can be read.
        block_of_token: int64 ``[S]`` on the CPU.
        areas: runs of blocks, each kind of pair of which has a budget of its own.
    """

    order: torch.Tensor | None
    partition: Partition
    sizes: torch.Tensor
    text: torch.Tensor
    force: torch.Tensor
    force_on_cpu: torch.Tensor
    block_of_token: torch.Tensor
    areas: tuple[Area, ...]

    @cached_property
    def log_fill(self) -> torch.Tensor:
        """Log of the share of a whole block that each block holds: fp32 ``[M]``, 0 but for a ragged tail."""
        return (self.sizes / self.partition.size).log()

    @cached_property
    def offsets(self) -> torch.Tensor:
        """Where each block begins, and where the last ends: int32 ``[1, 1, M + 1]``."""
        ends = torch.cat((self.sizes.new_zeros(1), self.sizes.cumsum(0)))
        return ends.int()[None, None]

    @cached_property
    def force_text(self) -> torch.Tensor:
        """Bool ``[1, 1, M, M]``: rows and columns of text and, where there is any, the diagonal: forced columns are no
        reason for a row not to see itself.
        """
        return torch.zeros_like(self.force) if alone(self.areas, self.partition.count) else self.force

    def select_topk(self, scores: torch.Tensor, density: float, **how) -> torch.Tensor:
        """`dittools.selection.budget.select_topk_blocks_by_area` of these blocks, with its keywords.

        ``force`` holds `force_text` where there is text.
        """
        return select_topk_blocks_by_area(scores, self.sizes, self.areas, density, **how)


def ordered_blocks(call, device: torch.device, order: str) -> OrderedBlocks:
    """The blocks of a run in the order of this name (`dittools.orders.named`), made at its first call.

    Args:
        call: a `dittools.methods.AttentionCall`.
        device: of the tensors.
        order: its name.
    """
    return call.run_cache.get_or_make(
        ("blocks", order, device), lambda: cut_into_blocks(call.grid, call.block_size, order, device)
    )


def cut_into_blocks(grid: TokenGrid, block_size: int, order: str, device: torch.device | str = "cpu") -> OrderedBlocks:
    """Cut ``grid`` in the named order into blocks of ``block_size``."""
    partition = Partition(grid.tokens, block_size)
    positions = named_order(order, grid, block_size)
    token = torch.arange(grid.tokens) if positions is None else positions.long()
    block = torch.arange(grid.tokens) // block_size
    text = torch.zeros(partition.count, dtype=torch.bool)
    text[block[grid.stays_dense()[token]]] = True
    force = text[:, None] | text | torch.eye(partition.count, dtype=torch.bool)
    sizes = partition.sizes()
    return OrderedBlocks(
        None if positions is None else positions[None, None].to(device),
        partition,
        sizes.to(device),
        text.to(device),
        force[None, None].to(device),
        force[None, None],
        torch.empty_like(block).scatter_(0, token, block),
        areas_of(grid, block_size),
    )
