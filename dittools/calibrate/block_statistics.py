"""What PAROAttention looks at in a map: how sparse and how even its blocks are, without holding the map."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.segment_mean.pooling import reduce_blocks
from dittools.kernels.upload import upload

# Weights of a chunk of query blocks and heads against all keys. A CPU wants them in its cache.
CHUNK_BYTES = 128 << 20
CPU_CHUNK_BYTES = 2 << 20


class BlockStatistics(NamedTuple):
    """Of sampled query blocks against all key blocks, ``[O, H, n, M]`` each for O orders, mean over batches.

    mass: sum of the block's softmax weights. peak: its largest. small: share of its weights below eps.
    """

    mass: torch.Tensor
    peak: torch.Tensor
    small: torch.Tensor


def block_statistics(
    q: torch.Tensor,
    k: torch.Tensor,
    orders: torch.Tensor,
    partition: Partition,
    blocks: list[int],
    scale: float,
    eps: float,
) -> BlockStatistics:
    """Statistics of the blocks of a map in several orders of its tokens.

    Keys stay where they are: a query block's sums over its own rows are brought into its order, which is a row for
    each block in place of a copy of k for each order.

    Args:
        q, k: ``[B, S, H, D]``.
        orders: position -> token, int32 ``[O, S]``.
        blocks: query blocks to look at, of positions. Some of them against all keys, in fp32, are the most that is ever
            held: a few times `CHUNK_BYTES`, or one block of one head. Nothing waits for the device.
        eps: below it a softmax weight counts as nothing.
    """
    batches, tokens, heads, dim = q.shape
    size, device = partition.size, q.device
    numbers = upload(torch.tensor(blocks), device)  # [n]
    at = numbers[:, None] * size + torch.arange(size, device=device)  # [n, size]
    # From here on a unit is one of these blocks in one of the orders.
    rows = orders[:, at.clamp_max(tokens - 1)].flatten(0, 1).long()  # [units, size]
    lacking = (at >= tokens).repeat(len(orders), 1)[..., None]  # [units, size, 1]
    order = orders.long()[:, None].expand(-1, len(blocks), -1).flatten(0, 1)  # [units, S]
    sizes = partition.sizes(device)
    pairs = (sizes[numbers][:, None] * sizes).repeat(len(orders), 1)  # [units, M]
    ragged = (max(blocks) + 1) * size > tokens

    budget = CPU_CHUNK_BYTES if device.type == "cpu" else CHUNK_BYTES
    each = 4 * batches * tokens
    some = max(1, min(heads, budget // (each * max(size, dim))))
    several = max(1, budget // (each * size * some))
    found = torch.empty(3, batches, heads, len(rows), partition.count, device=device)
    for h in range(0, heads, some):
        keys = k[:, :, h : h + some].permute(0, 2, 3, 1).float().contiguous()  # [B, h, D, S]
        for u in range(0, len(rows), several):
            of = slice(u, u + several)
            queries = q[:, :, h : h + some].index_select(1, rows[of].flatten()).float().transpose(1, 2) * scale
            weights = (queries @ keys).softmax(-1).unflatten(2, rows[of].shape)  # [B, h, units, size, S]
            small = weights < eps
            if ragged:
                weights.masked_fill_(lacking[of], 0)
                small.logical_and_(~lacking[of])
            columns = torch.stack((weights.sum(3), weights.amax(3), small.sum(3, dtype=torch.float32)))
            columns = columns.gather(-1, order[of].expand_as(columns))  # [3, B, h, units, S]
            for part, values, reduce in zip(found, columns, (torch.sum, torch.amax, torch.sum), strict=True):
                part[:, h : h + some, of] = reduce_blocks(values, partition, 3, reduce)
    found[2] /= pairs
    return BlockStatistics(*found.mean(1).unflatten(2, (len(orders), len(blocks))).transpose(1, 2))


def sparse_share(found: BlockStatistics, sigma: float) -> torch.Tensor:
    """Share of blocks that are almost all below eps, PAROAttention's M_sparse: ``[O, H]``, more is better."""
    return (found.small >= sigma).float().mean((-1, -2))


def incoherence(found: BlockStatistics, sizes: torch.Tensor) -> torch.Tensor:
    """Mean over blocks of largest over mean weight, PAROAttention's M_quant: ``[O, H]``, less is better.

    ``sizes``: weights in each block, ``[n, M]``.
    """
    return (found.peak * sizes / found.mass.clamp_min(1e-30)).mean((-1, -2))


def kept_share(found: BlockStatistics, density: float) -> torch.Tensor:
    """Share of the mass in the heaviest blocks, at this share of the blocks: ``[O, H]``, more is better."""
    mass = found.mass.flatten(2)
    count = max(1, round(density * mass.shape[-1]))
    return mass.topk(count, dim=-1).values.sum(-1) / mass.sum(-1)


def order_loss(sparse: torch.Tensor, quant: torch.Tensor, alpha: float) -> torch.Tensor:
    """PAROAttention's score of candidate orders ``[orders, H]``, of which the least is best.

    The paper adds M_sparse, of which more is better, with a plus sign to what is to be smallest: that would pick the
    order that groups worst. Here what is *not* sparse is added.
    """

    def share(value: torch.Tensor) -> torch.Tensor:
        return value / value.sum(0).clamp_min(torch.finfo(torch.float32).tiny)

    return alpha * share(1 - sparse) + (1 - alpha) * share(quant)
