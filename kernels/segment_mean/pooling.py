"""Blocks of tokens pooled to one vector each, ragged tail included."""

from __future__ import annotations

import torch


def pool_blocks(x: torch.Tensor, partition, *, how: str = "mean") -> torch.Tensor:
    """One vector per block of tokens.

    Args:
        x: ``[B, S, H, D]``, any strides.
        partition: a `Partition` of length S; the tail pools over the tokens it has.
        how: "mean" or "max".

    Returns:
        fp32 ``[B, M, H, D]``; sums are accumulated in fp32.

    Raises:
        ValueError: when x is not ``[B, S, H, D]`` with S the partition's length, or ``how`` is unknown.
    """
    if x.ndim != 4 or x.shape[1] != partition.length:
        raise ValueError(f"x must be [B, {partition.length}, H, D], got {list(x.shape)}")
    if how not in ("mean", "max"):
        raise ValueError(f"how must be mean or max, got {how!r}")
    if how == "max":
        return reduce_blocks(x, partition, 1, torch.amax).float()
    sums = reduce_blocks(x, partition, 1, lambda blocks, dim: blocks.sum(dim, dtype=torch.float32))
    return sums / partition.sizes(x.device)[:, None, None]


def reduce_blocks(x: torch.Tensor, partition, dim: int, reduce) -> torch.Tensor:
    """Reduce each block along a dimension, ``dim`` at least 0: ``[..., length, ...]`` -> ``[..., count, ...]``."""
    whole = partition.length // partition.size
    parts = []
    if whole:
        inner = x.narrow(dim, 0, whole * partition.size).unflatten(dim, (whole, partition.size))
        parts.append(reduce(inner, dim + 1))
    if whole < partition.count:
        tail = x.narrow(dim, whole * partition.size, partition.tail)
        parts.append(reduce(tail, dim).unsqueeze(dim))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
