"""Queries that see every key where the block that they are in does not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dittools.kernels.block_sparse.dispatch import block_sparse_attention
from dittools.kernels.masks.block_mask import BlockMask, Partition


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Some queries of some heads that attend to every key, whatever a mask says: text in a block with video.

    Args:
        queries: int64 ``[r]``, tokens. heads: int64 ``[h]``.
        length: S, tokens of the sequence. block_size: of the mask, which suits the kernels.
    """

    queries: torch.Tensor
    heads: torch.Tensor
    length: int
    block_size: int

    def put(self, q, k, v, out: torch.Tensor, lse: torch.Tensor | None, scale, implementation=None) -> None:
        """Write their rows into ``out`` ``[B, S, H, D]`` and ``lse`` ``[B, H, S]``.

        Args: as `dittools.attention.attend`.
        """
        q, k, v = (x.index_select(2, self.heads) for x in (q, k, v))
        parts = Partition(len(self.queries), self.block_size), Partition(self.length, self.block_size)
        rows, row_lse = block_sparse_attention(
            q.index_select(1, self.queries), k, v, BlockMask.full(*parts, q.device), scale=scale, return_lse=True,
            implementation=implementation,
        )  # fmt: skip
        out[:, self.queries[:, None], self.heads] = rows
        if lse is not None:
            lse[:, self.heads[:, None], self.queries] = row_lse

    def copy(self, out: torch.Tensor, to: torch.Tensor) -> None:
        """Write their rows of ``out`` ``[B, S, H, D]`` into another output."""
        place = slice(None), self.queries[:, None], self.heads
        to[place] = out[place].to(to.dtype)

    def density(self, kept: torch.Tensor) -> torch.Tensor:
        """Shares of the pairs of each head, ``[B or 1, H]``, with these: the mask keeps nothing of their rows."""
        return kept.index_add(
            1, self.heads, kept.new_full((len(kept), len(self.heads)), len(self.queries) / self.length)
        )
