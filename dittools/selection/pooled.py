"""Blocks scored by their pooled queries and keys: attention of blocks instead of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dittools.kernels.segment_mean.dispatch import segment_means
from dittools.kernels.segment_mean.pooling import pool_blocks
from dittools.selection.in_order import over_heads
from dittools.selection.ordered_blocks import OrderedBlocks


def pool(x: torch.Tensor, blocks: OrderedBlocks, how: str = "mean") -> torch.Tensor:
    """One vector a block, in the blocks' order: ``[B, S, H, D]`` -> fp32 ``[B, H, M, D]``.

    ``how``: "mean", which copies nothing, or "max". For that a copy of x is made where there is an order, a few heads
    at a time (`in_order.CHUNK_BYTES`).
    """
    return _pool([x], blocks, how)[0]


def _pool(tensors: Sequence[torch.Tensor], blocks: OrderedBlocks, how: str) -> tuple[torch.Tensor, ...]:
    """`pool` of tensors of one shape in one pass."""
    if how == "mean":
        return segment_means(tensors, blocks.order, blocks.offsets)

    def stacked(_, *parts: torch.Tensor) -> torch.Tensor:
        pooled = [pool_blocks(part, blocks.partition, how=how).transpose(1, 2) for part in parts]
        return torch.stack(pooled, 2)  # [B, h, tensors, M, D]

    return over_heads(stacked, tensors, blocks.order).unbind(2)


def pooled_logits(
    q: torch.Tensor, k: torch.Tensor, blocks: OrderedBlocks, scale: float, *, how: str = "mean"
) -> torch.Tensor:
    """Scaled products of pooled queries and pooled keys.

    Args:
        q, k: ``[B, S, H, D]``.
        blocks: of queries and keys alike, in their order.
        scale: factor on the products; 1 for the bare ones.
        how: "mean" or "max" over the tokens of a block.

    Returns:
        fp32 ``[B, H, M, M]``: four bytes a block pair, 1.4 MB a head at 75,600 tokens and blocks of 128.
    """
    queries, keys = _pool([q, k], blocks, how)
    return mean_logits(queries, keys, scale)


def mean_logits(queries: torch.Tensor, keys: torch.Tensor, scale: float) -> torch.Tensor:
    """Scaled products of pooled queries and keys, fp32 ``[B, H, M, D]`` each: fp32 ``[B, H, M, M]``."""
    return (queries * scale) @ keys.transpose(-1, -2)


def centred(means: torch.Tensor, blocks: OrderedBlocks) -> torch.Tensor:
    """Means of blocks ``[B, H, M, D]`` less the mean of all tokens. Of keys, softmax over them does not see it."""
    share = blocks.sizes / blocks.partition.length  # fp32 [M]
    return means - share @ means[..., None, :, :]


def block_softmax(logits: torch.Tensor, blocks: OrderedBlocks, skip: torch.Tensor | None = None) -> torch.Tensor:
    """Softmax over key blocks, each counted by the tokens it holds.

    Key blocks that hold text are kept whatever they score (`OrderedBlocks.force`), so they get no share here: the
    scores say how the rest divides among video.

    Args:
        logits: ``[B, H, M, M]``.
        skip: bool ``[B, H, M]``, more key blocks that get no share.
    """
    out = blocks.text if skip is None else blocks.text | skip  # [.., M]
    # A block of half the tokens holds half the mass at the same logit. What is out gets the lowest number, next to
    # which a logit vanishes: finite, so that a row in which nothing is left becomes flat and not NaN.
    bias = blocks.log_fill.expand(out.shape).masked_fill(out, torch.finfo(logits.dtype).min)
    return (logits + bias[..., None, :]).softmax(-1)
