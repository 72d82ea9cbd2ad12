"""Blocks scored by antidiagonals: a strided sample that meets every query and every key of a block.

Source: XAttention (arXiv 2503.16428).
"""

from __future__ import annotations

import torch

from dittools.blocks import Partition
from dittools.kernels.pooling import reduce_blocks
from dittools.selectors import in_order
from dittools.selectors.in_order import over_heads
from dittools.selectors.layout import Layout


def antidiagonal_mass(q: torch.Tensor, k: torch.Tensor, layout: Layout, scale: float, stride: int) -> torch.Tensor:
    """Share of each key block in the softmax over antidiagonals, mean over the rows of a query block.

    The s x s tile at (i, j) scores ``sum_r q[s i + s - 1 - r] . k[s j + r]``, times ``scale / s``. Folding s tokens
    into one vector of s D numbers, queries backwards, makes every score one product, at 1/s of the dense cost. The
    softmax runs over all j; then shares are summed over the tiles of each block.

    Args:
        q, k: ``[B, S, H, D]``.
        layout: order and blocks of a size that ``stride`` divides.
        scale: factor on the logits.
        stride: s.

    Returns:
        fp32 ``[B, H, M, M]``, rows sum to 1. Copies of q and k are bounded by `in_order.CHUNK_BYTES`.

    The published code fills up short sequences with zero keys and lets them take mass; here the last token is
    repeated instead, so that the last tile scores like a whole one of real tokens.
    """
    blocks = layout.partition
    tiles = Partition(-(-blocks.length // stride), blocks.size // stride)

    def score(_, queries, keys):
        folded_q, folded_k = fold(queries, stride, backwards=True), fold(keys, stride)
        return _mass(folded_q, folded_k, tiles, scale / stride) / tiles.sizes(q.device)[:, None]

    return over_heads(score, [q, k], layout.order, copies=2)


def _mass(q: torch.Tensor, k: torch.Tensor, tiles: Partition, scale: float) -> torch.Tensor:
    """Softmax over all tiles, summed over the tiles of each block: ``[B, T, h, s D]`` -> fp32 ``[B, h, M, M]``."""
    q, k = q.transpose(1, 2), k.permute(0, 2, 3, 1)  # [B, h, T, s D], [B, h, s D, T]
    row = 12 * q.shape[0] * q.shape[1] * tiles.length  # bytes: a product, and what the softmax reads and writes
    step = max(1, in_order.CHUNK_BYTES // (row * tiles.size)) * tiles.size
    parts = []
    for first in range(0, tiles.length, step):
        # Products in the dtype of q, summed in fp32 inside: a choice of blocks needs no more.
        logits = (q[:, :, first : first + step] @ k).float()
        shares = reduce_blocks(logits.mul_(scale).softmax(-1), tiles, 3, torch.sum)
        parts.append(reduce_blocks(shares, Partition(shares.shape[2], tiles.size), 2, torch.sum))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def fold(x: torch.Tensor, stride: int, backwards: bool = False) -> torch.Tensor:
    """``stride`` tokens side by side in one vector: ``[B, S, H, D]`` -> ``[B, ceil(S / stride), H, stride * D]``."""
    batches, tokens, heads, dim = x.shape
    short = -tokens % stride
    if short:
        x = torch.cat((x, x[:, -1:].expand(-1, short, -1, -1)), 1)
    x = x.unflatten(1, (-1, stride))
    if backwards:
        x = x.flip(2)
    return x.transpose(2, 3).reshape(batches, -1, heads, stride * dim)
