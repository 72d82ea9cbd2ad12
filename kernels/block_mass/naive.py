"""The oracle of measured block mass."""

from __future__ import annotations

import torch


def naive_block_mass(q: torch.Tensor, k: torch.Tensor, query, key, *, scale: float | None = None) -> torch.Tensor:
    """The oracle: the softmax written out, and sums over its blocks."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    weights = (torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale).softmax(-1)
    rows = torch.stack([block.sum(-2) for block in weights.split(query.size, -2)], -2)
    return torch.stack([block.sum(-1) for block in rows.split(key.size, -1)], -1).float()
