"""Block mass estimated from antidiagonals: a strided sample that meets every query and every key of a block.

The s x s tile at (i, j) scores ``sum_r q[s i + s - 1 - r] . k[s j + r]``, times ``scale / s``; r walks an antidiagonal.
Source: XAttention (arXiv 2503.16428), section 2. All tiles cost 1 / s of the products of dense attention.
"""

from __future__ import annotations

import torch

from dittools.kernels.capability import why_not_triton_antidiagonals
from dittools.kernels.choice import picks_triton
from dittools.kernels.permute.dispatch import gather_tokens
from dittools.kernels.segment_mean.pooling import reduce_blocks

# Copies, products and what the softmax reads and writes, at a time.
CHUNK_BYTES = 256 << 20


def measure_antidiagonals(
    q: torch.Tensor,
    k: torch.Tensor,
    blocks,
    stride: int,
    *,
    scale: float | None = None,
    order: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Share of each key block in the softmax over tiles, mean over the rows of tiles of each query block.

    The softmax runs over all j; then shares are summed over the tiles of each block. Where the length is no multiple
    of s, the last token is repeated, so that the last tile scores like a whole one of real tokens. The published code
    fills up with zero keys and lets them take mass.

    Args:
        q, k: ``[B, S, H, D]``, same dtype and device. Any strides.
        blocks: `Partition` of S positions; s divides its size.
        stride: s, tokens a tile has on each side.
        scale: factor on the logits, ``1 / sqrt(D)`` by default; a tile's score is scaled by ``scale / s``.
        order: int32 ``[B or 1, 1, S]``, position -> token, the same for all heads; None is the order of the tokens.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        fp32 ``[B, H, M, M]``, rows sum to 1. Nothing of size S x S is held: beside q and k at most `CHUNK_BYTES` at a
        time, or what one head takes.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    _check(q, k, blocks, stride, order)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if picks_triton(implementation, q, k, reason=why_not_triton_antidiagonals(q.shape[-1], blocks.size // stride)):
        from dittools.kernels.antidiagonal.triton import triton_antidiagonals

        return triton_antidiagonals(q, k, blocks, stride, scale / stride, order)
    tiles = _tiles(blocks, stride)
    heads = q.shape[2]
    # A score of large fp16 vectors is larger than fp16 goes, and is scaled only after it is summed.
    wide = q.dtype == torch.float16
    copies = 2 + 2 * (order is not None) + 4 * wide  # of the size of q, widened ones counted twice
    step = max(1, min(heads, CHUNK_BYTES // (copies * q.numel() * q.element_size() // heads)))
    mass = torch.empty(q.shape[0], heads, tiles.count, tiles.count, device=q.device)
    for first in range(0, heads, step):
        pair = [x[:, :, first : first + step] for x in (q, k)]
        if order is not None:
            pair = gather_tokens(pair, order)
        if wide:
            pair = [x.float() for x in pair]
        folded = fold(pair[0], stride, backwards=True), fold(pair[1], stride)
        mass[:, first : first + step] = _mass(*folded, tiles, scale / stride)
    return mass.div_(tiles.sizes(q.device)[:, None])


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


def _tiles(blocks, stride: int):
    """The partition of the rows of tiles into blocks."""
    return type(blocks)(-(-blocks.length // stride), blocks.size // stride)


def _mass(q: torch.Tensor, k: torch.Tensor, tiles, scale: float) -> torch.Tensor:
    """Softmax over all tiles, summed over the tiles of each block: ``[B, T, h, s D]`` -> fp32 ``[B, h, M, M]``.

    Queries folded backwards make every score one product.
    """
    q, k = q.transpose(1, 2), k.permute(0, 2, 3, 1)  # [B, h, T, s D], [B, h, s D, T]
    row = 12 * q.shape[0] * q.shape[1] * tiles.length  # bytes: a product, and what the softmax reads and writes
    step = max(1, CHUNK_BYTES // (row * tiles.size)) * tiles.size
    parts = []
    for first in range(0, tiles.length, step):
        # Products of bf16 are rounded to it, though summed in fp32 inside: a choice of blocks needs no more.
        logits = (q[:, :, first : first + step] @ k).float()
        shares = reduce_blocks(logits.mul_(scale).softmax(-1), tiles, 3, torch.sum)
        parts.append(reduce_blocks(shares, type(tiles)(shares.shape[2], tiles.size), 2, torch.sum))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _check(q: torch.Tensor, k: torch.Tensor, blocks, stride: int, order: torch.Tensor | None) -> None:
    if q.ndim != 4 or k.shape != q.shape:
        raise ValueError(f"q and k must both be [B, S, H, D], got {list(q.shape)} and {list(k.shape)}")
    if k.dtype != q.dtype or k.device != q.device:
        raise ValueError(f"k is {k.dtype} on {k.device}, but q is {q.dtype} on {q.device}")
    if blocks.length != q.shape[1]:
        raise ValueError(f"the partition is of {blocks.length} tokens, but q has {q.shape[1]}")
    if stride < 1 or blocks.size % stride:
        raise ValueError(f"the stride must divide blocks of {blocks.size} tokens, got {stride}")
    if order is not None and (order.ndim != 3 or order.shape[0] not in (1, q.shape[0]) or order.shape[1] != 1):
        raise ValueError(f"order must be int32 [{q.shape[0]} or 1, 1, {q.shape[1]}], got {list(order.shape)}")
