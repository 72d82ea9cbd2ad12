"""What PAROAttention looks at in a map: how sparse and how even its blocks are, without holding the map."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.blocks import Partition
from dittools.kernels.pooling import reduce_blocks


class BlockStatistics(NamedTuple):
    """Of sampled query blocks against all key blocks, ``[H, n, M]`` each, mean over batches.

    mass: sum of the block's softmax weights. peak: its largest. small: share of its weights below eps.
    """

    mass: torch.Tensor
    peak: torch.Tensor
    small: torch.Tensor


def block_statistics(
    q: torch.Tensor, k: torch.Tensor, partition: Partition, blocks: list[int], scale: float, eps: float
) -> BlockStatistics:
    """Statistics of the blocks of a map in the order that q and k ``[B, S, H, D]`` are in.

    Args:
        blocks: query blocks to look at. One of them against all keys, in fp32, is the most that is ever held.
        eps: below it a softmax weight counts as nothing.
    """
    batches, _, heads, _ = q.shape
    found = torch.zeros(3, heads, len(blocks), partition.count, device=q.device)
    sizes = partition.sizes(q.device)
    for b in range(batches):
        for h in range(heads):
            keys = k[b, :, h].float().T  # [D, S]
            for n, block in enumerate(blocks):
                rows = q[b, block * partition.size : (block + 1) * partition.size, h].float()
                weights = ((rows @ keys) * scale).softmax(-1)  # [queries of the block, S]
                columns = torch.stack((weights.sum(0), weights.amax(0), (weights < eps).sum(0, dtype=torch.float32)))
                found[0, h, n] += reduce_blocks(columns[0], partition, 0, torch.sum)
                found[1, h, n] += reduce_blocks(columns[1], partition, 0, torch.amax)
                found[2, h, n] += reduce_blocks(columns[2], partition, 0, torch.sum) / (len(rows) * sizes)
    return BlockStatistics(*(found / batches))


def sparse_share(found: BlockStatistics, sigma: float) -> torch.Tensor:
    """Share of blocks that are almost all below eps, PAROAttention's M_sparse: ``[H]``, more is better."""
    return (found.small >= sigma).float().mean((-1, -2))


def incoherence(found: BlockStatistics, sizes: torch.Tensor) -> torch.Tensor:
    """Mean over blocks of largest over mean weight, PAROAttention's M_quant: ``[H]``, less is better.

    ``sizes``: weights in each block, ``[n, M]``.
    """
    return (found.peak * sizes / found.mass.clamp_min(1e-30)).mean((-1, -2))


def kept_share(found: BlockStatistics, density: float) -> torch.Tensor:
    """Share of the mass in the heaviest blocks, at this share of the blocks: ``[H]``, more is better."""
    mass = found.mass.flatten(1)
    count = max(1, round(density * mass.shape[1]))
    return mass.topk(count, dim=-1).values.sum(-1) / mass.sum(-1)


def order_loss(sparse: torch.Tensor, quant: torch.Tensor, alpha: float) -> torch.Tensor:
    """PAROAttention's score of candidate orders ``[orders, H]``, of which the least is best.

    The paper adds M_sparse, of which more is better, with a plus sign to what is to be smallest: that would pick the
    order that groups worst. Here what is *not* sparse is added.
    """

    def share(value: torch.Tensor) -> torch.Tensor:
        return value / value.sum(0).clamp_min(torch.finfo(torch.float32).tiny)

    return alpha * share(1 - sparse) + (1 - alpha) * share(quant)
