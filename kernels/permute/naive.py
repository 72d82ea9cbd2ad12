"""The oracle of moving tokens into an order and back."""

from __future__ import annotations

import torch


def naive_permute(x: torch.Tensor, order: torch.Tensor, *, back: bool = False) -> torch.Tensor:
    """The oracle: each head of each batch by indexing."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    order = order.expand(x.shape[0], x.shape[2], -1).long()
    for b in range(x.shape[0]):
        for h in range(x.shape[2]):
            if back:
                out[b, order[b, h], h] = x[b, :, h]
            else:
                out[b, :, h] = x[b, order[b, h], h]
    return out
