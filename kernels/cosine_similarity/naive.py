"""The oracle of the mean cosine within runs."""

from __future__ import annotations

import torch


def naive_intra_block_cosine_similarity(
    x: torch.Tensor, order: torch.Tensor | None, offsets: torch.Tensor
) -> torch.Tensor:
    """The oracle of the likeness: all pairs of each run, in fp64."""
    batches, tokens, heads, _ = x.shape
    if order is None:
        order = torch.arange(tokens, device=x.device)[None, None]
    order = order.expand(batches, heads, -1).long()
    found = torch.zeros(batches, heads, offsets.shape[-1] - 1, dtype=torch.float64)
    for b in range(batches):
        for h in range(heads):
            ends = offsets.expand(batches, heads, -1)[b, h].tolist()
            for n in range(len(ends) - 1):
                if ends[n + 1] > ends[n]:
                    unit = torch.nn.functional.normalize(x[b, order[b, h, ends[n] : ends[n + 1]], h].double(), dim=-1)
                    found[b, h, n] = (unit @ unit.T).mean()
    return found.float()
