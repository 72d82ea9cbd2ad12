"""The best blocks of rows, or of whole heads, while their pairs fit into a share: a mask without a sort.

Best first: forced blocks, then by score, and of equal scores the lower index. A row of which nothing that holds keys is
forced keeps its best block that holds keys in any case.
"""

from __future__ import annotations

import torch

from dittools.kernels.capability import why_not_triton_topk_mask
from dittools.kernels.choice import picks_triton
from dittools.kernels.topk_mask.share import HALVINGS, must_keep, rounding


def topk_mask_per_row(
    scores: torch.Tensor,
    query_sizes: torch.Tensor,
    key_sizes: torch.Tensor,
    density: float | torch.Tensor,
    *,
    force: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """Every row of a head its share of the keys; rows that must keep more than that leave less to the others.

    Args:
        scores: fp32 ``[B, H, Mq, Nk]``, no NaN.
        query_sizes, key_sizes: whole numbers, broadcastable to ``[B, H, Mq]`` and ``[B, H, Nk]``.
        density: share of the pairs of a head to keep, in (0, 1], or a tensor broadcastable to ``[B, H]``.
        force: bool, broadcastable to the scores.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        bool ``[B, H, Mq, Nk]``. A row cannot keep part of a block: which rows round up is spread evenly over a head.
    """
    queries, keys = _sizes(scores, query_sizes, key_sizes)
    if picks_triton(implementation, scores, reason=why_not_triton_topk_mask(scores)):
        from dittools.kernels.topk_mask.triton import triton_topk_mask_per_row

        return triton_topk_mask_per_row(
            scores, queries, keys, density, force, rounding(scores.shape[-2], scores.device)
        )
    must = must_keep(scores, force, keys)
    queries, keys = queries.double(), keys.double()
    pairs = density * queries.sum(-1) * keys.sum(-1)  # [B, H]
    forced = (must * keys[:, :, None]).sum(-1)  # [B, H, Mq], keys
    # The share is the level at which max(forced, level), weighted by queries, comes to the budget: found by halving.
    low, high = torch.zeros_like(pairs), keys.sum(-1)
    for _ in range(HALVINGS):
        level = (low + high) / 2
        over = (torch.maximum(forced, level[..., None]) * queries).sum(-1) > pairs
        low, high = torch.where(over, low, level), torch.where(over, level, high)
    level = low[..., None, None].clamp_min(1e-9)
    order = scores.masked_fill(must, torch.inf).argsort(dim=-1, descending=True, stable=True)  # [B, H, Mq, Nk]
    sizes = keys[:, :, None].expand(order.shape).gather(-1, order)
    before = sizes.cumsum(-1) - sizes
    keep = before + sizes * rounding(scores.shape[-2], scores.device)[:, None] < level
    return torch.zeros_like(must).scatter_(-1, order, keep) | must


def topk_mask_per_head(
    scores: torch.Tensor,
    query_sizes: torch.Tensor,
    key_sizes: torch.Tensor,
    density: float | torch.Tensor,
    *,
    across_heads: bool = False,
    force: torch.Tensor | None = None,
    implementation: str | None = None,
) -> torch.Tensor:
    """One share of the pairs for all rows of a head, or of all heads of a batch element, spent on the best.

    Args, returns: as `topk_mask_per_row`, but heads that share have one density. A block is kept when its
    middle still lies within the share.
    """
    queries, keys = _sizes(scores, query_sizes, key_sizes)
    if picks_triton(implementation, scores, reason=why_not_triton_topk_mask(scores)):
        from dittools.kernels.topk_mask.triton import triton_topk_mask_per_head

        return triton_topk_mask_per_head(scores, queries, keys, density, across_heads, force)
    must = must_keep(scores, force, keys)
    lanes = 1 if across_heads else 2
    weight = (queries.double()[..., None] * keys.double()[:, :, None]).flatten(lanes)
    order = scores.masked_fill(must, torch.inf).flatten(lanes).argsort(dim=-1, descending=True, stable=True)
    spent = weight.gather(-1, order)
    spent = spent.cumsum(-1) - spent / 2
    if isinstance(density, torch.Tensor):
        density = density[..., None]
    keep = spent < density * weight.sum(-1, keepdim=True)
    return torch.zeros_like(must).flatten(lanes).scatter_(-1, order, keep).view_as(must) | must


def _sizes(scores: torch.Tensor, query_sizes: torch.Tensor, key_sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rows, columns = scores.shape[-2:]
    return (
        query_sizes.to(scores.device).expand(*scores.shape[:2], rows),
        key_sizes.to(scores.device).expand(*scores.shape[:2], columns),
    )
