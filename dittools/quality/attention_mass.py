"""How concentrated attention is: the softmax mass of blocks, and what share of it the best blocks hold."""

from __future__ import annotations

import torch

from dittools.blocks import Partition


def block_mass(q: torch.Tensor, k: torch.Tensor, block: int = 128, scale: float | None = None) -> torch.Tensor:
    """Share of all softmax mass that falls into each block of query-key pairs.

    One block row of one head at a time, so that no S x S tensor is ever held.

    Args:
        q, k: ``[B, S, H, D]``.
        block: tokens in a block; the last one may be shorter.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.

    Returns:
        fp32 ``[B, H, M, M]``, each head summing to 1.
    """
    batches, tokens, heads, dim = q.shape
    partition = Partition(tokens, block)
    scale = dim**-0.5 if scale is None else scale
    of_key = torch.arange(tokens, device=q.device) // block
    mass = torch.empty(batches, heads, partition.count, partition.count, device=q.device)
    for b in range(batches):
        for h in range(heads):
            keys = k[b, :, h].T
            for i in range(partition.count):
                rows = q[b, i * block : (i + 1) * block, h]
                weights = ((rows @ keys).float() * scale).softmax(-1).sum(0)  # [S]
                mass[b, h, i] = torch.zeros(partition.count, device=q.device).index_add_(0, of_key, weights)
    return mass / tokens


def top_share(mass: torch.Tensor, share: float) -> torch.Tensor:
    """Mass in the heaviest ``share`` of the blocks of each head: ``[B, H, M, M]`` -> ``[B, H]``."""
    flat = mass.flatten(-2)
    count = max(1, round(share * flat.shape[-1]))
    return flat.topk(count, -1).values.sum(-1)
