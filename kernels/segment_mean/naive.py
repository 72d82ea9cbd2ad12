"""The oracles of means of runs, and of even blocks."""

from __future__ import annotations

from itertools import pairwise

import torch


def naive_pool_blocks(x: torch.Tensor, partition, *, how: str = "mean") -> torch.Tensor:
    """The oracle: block by block, in fp32."""
    pool = torch.amax if how == "max" else torch.mean
    return torch.stack([pool(block, 1) for block in x.float().split(partition.size, 1)], 1)


def naive_segment_means(x: torch.Tensor, order: torch.Tensor | None, offsets: torch.Tensor) -> torch.Tensor:
    """The oracle: run after run, in fp64."""
    batches, tokens, heads, dim = x.shape
    if order is None:
        order = torch.arange(tokens, device=x.device)[None, None]
    order = order.expand(batches, heads, -1).long()
    means = torch.zeros(batches, heads, offsets.shape[-1] - 1, dim, dtype=torch.float64, device=x.device)
    for b in range(batches):
        for h in range(heads):
            ends = offsets.expand(batches, heads, -1)[b, h].tolist()
            for n, (first, stop) in enumerate(pairwise(ends)):
                if stop > first:
                    means[b, h, n] = x[b, order[b, h, first:stop], h].double().mean(0)
    return means.float()
