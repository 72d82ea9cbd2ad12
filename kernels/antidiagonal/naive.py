"""The oracle of block mass estimated from antidiagonals."""

from __future__ import annotations

import torch


def naive_antidiagonals(
    q: torch.Tensor, k: torch.Tensor, blocks, stride: int, *, scale: float | None = None, order=None
) -> torch.Tensor:
    """The oracle: one antidiagonal after the other in fp64, the softmax over all tiles, and sums over its blocks."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    at = torch.arange(-(-blocks.length // stride) * stride, device=q.device).clamp_max(blocks.length - 1)
    scores = []
    for b in range(q.shape[0]):
        token = at if order is None else order[b % order.shape[0], 0].long()[at]
        rows, keys = (x[b, token].double().unflatten(0, (-1, stride)) for x in (q, k))  # [T, s, H, D]
        pairs = (torch.einsum("ihd,jhd->hij", rows[:, stride - 1 - r], keys[:, r]) for r in range(stride))
        scores.append(sum(pairs))
    shares = (torch.stack(scores) * scale / stride).softmax(-1)  # [B, H, T, T]
    size = blocks.size // stride
    rows = torch.stack([part.sum(-1) for part in shares.split(size, -1)], -1)
    return torch.stack([part.mean(-2) for part in rows.split(size, -2)], -2).float()
