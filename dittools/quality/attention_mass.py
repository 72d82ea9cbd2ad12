"""How concentrated attention is: the softmax mass of blocks, and what share of it the best blocks hold."""

from __future__ import annotations

import torch

from dittools import kernels
from dittools.kernels.masks.block_mask import Partition


def block_mass(q: torch.Tensor, k: torch.Tensor, block: int = 128, scale: float | None = None) -> torch.Tensor:
    """Share of all softmax mass that falls into each block of query-key pairs.

    Args:
        q, k: ``[B, S, H, D]``.
        block: tokens in a block; the last one may be shorter.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.

    Returns:
        fp32 ``[B, H, M, M]``, each head summing to 1: `dittools.kernels.measure_block_mass` over S.
    """
    partition = Partition(q.shape[1], block)
    return kernels.measure_block_mass(q, k, partition, partition, scale=scale) / partition.length


def top_share(mass: torch.Tensor, share: float) -> torch.Tensor:
    """Mass in the heaviest ``share`` of the blocks of each head: ``[B, H, M, M]`` -> ``[B, H]``."""
    flat = mass.flatten(-2)
    count = max(1, round(share * flat.shape[-1]))
    return flat.topk(count, -1).values.sum(-1)
