"""Scores of blocks to a mask of the asked density: the one place where methods spend their budget."""

from __future__ import annotations

import torch

SCOPES = ("row", "head", "layer")
RANKINGS = ("score", "cumulative")
_GOLDEN = 0.6180339887498949


def spend(
    scores: torch.Tensor,
    query_sizes: torch.Tensor,
    key_sizes: torch.Tensor,
    density: float,
    *,
    scope: str = "row",
    ranking: str = "score",
    force: torch.Tensor | None = None,
) -> torch.Tensor:
    """Keep the best blocks of each scope until the asked share of its query-key pairs is kept.

    Forced blocks come first and count. Every query block keeps its best key block, whatever the budget. What is
    kept counts in pairs, so ragged and variable blocks weigh what they hold. Nothing waits for the device.

    Args:
        scores: ``[B, H, Mq, Nk]``, more is better, no NaN; at least 0 with ranking "cumulative". Of equal scores
            the lower index wins.
        query_sizes, key_sizes: queries and keys in each block, ``[Mq]`` and ``[Nk]`` or with the lanes in front,
            ``[B or 1, H or 1, Mq]``. Blocks may be empty.
        density: share of the pairs to keep, in (0, 1].
        scope: who shares a budget. "row": each query block keeps the same share, which is what top-k means; rows
            forced to more take it from the others. "head": a head spends where its scores are highest. "layer":
            all heads of a batch element spend one budget.
        ranking: what makes a block better than one of another row. "score": the score itself (top-k by mass).
            "cumulative": the share of its row's total that better blocks hold already, so that every row keeps
            its nucleus of one common p (top-p).
        force: bool, broadcastable to the scores.

    Returns:
        bool ``[B, H, Mq, Nk]``.

    Raises:
        ValueError: for an unknown scope or ranking, or a density outside (0, 1].
    """
    for name, value, known in (("scope", scope, SCOPES), ("ranking", ranking, RANKINGS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density:g}")
    scores = scores.float()
    rows, columns = scores.shape[-2:]
    queries = query_sizes.to(scores.device, torch.float64).expand(*scores.shape[:2], rows)  # [B, H, Mq]
    keys = key_sizes.to(scores.device, torch.float64).expand(*scores.shape[:2], columns)  # [B, H, Nk]
    must = scores >= scores.amax(-1, keepdim=True)
    must = must & (must.cumsum(-1) == 1)  # the first of equal ones
    if force is not None:
        must = must | force
    if scope == "row":
        return _rows(scores, queries, keys, density, must)
    if ranking == "cumulative":
        scores = -_held_before(scores, must)
    return _pool(scores, queries, keys, density, must, lanes=2 if scope == "head" else 1)


def _rows(scores, queries, keys, density: float, must: torch.Tensor) -> torch.Tensor:
    """Every row its share: rows that must keep more than that leave less to the others."""
    pairs = density * queries.sum(-1) * keys.sum(-1)  # [B, H]
    forced = (must * keys[:, :, None]).sum(-1)  # [B, H, Mq], keys
    # The share is the level at which max(forced, level), weighted by queries, comes to the budget: found by halving.
    low, high = torch.zeros_like(pairs), keys.sum(-1)
    for _ in range(30):
        level = (low + high) / 2
        over = (torch.maximum(forced, level[..., None]) * queries).sum(-1) > pairs
        low, high = torch.where(over, low, level), torch.where(over, level, high)
    level = low[..., None].clamp_min(1e-9)
    order = scores.masked_fill(must, torch.inf).argsort(dim=-1, descending=True, stable=True)  # [B, H, Mq, Nk]
    sizes = keys[:, :, None].expand(order.shape).gather(-1, order)
    before = sizes.cumsum(-1) - sizes
    # A row cannot keep part of a block: which rows round up is spread evenly, so that together they keep the share.
    spread = (torch.arange(scores.shape[-2], device=scores.device, dtype=torch.float64) * _GOLDEN + 0.5) % 1
    keep = before + sizes * spread[:, None] < level[..., None]
    return torch.zeros_like(must).scatter_(-1, order, keep) | must


def _pool(scores, queries, keys, density: float, must: torch.Tensor, lanes: int) -> torch.Tensor:
    """One budget for everything behind the first ``lanes`` dimensions, spent on the best."""
    weight = (queries[..., None] * keys[:, :, None]).flatten(lanes)
    order = scores.masked_fill(must, torch.inf).flatten(lanes).argsort(dim=-1, descending=True, stable=True)
    spent = weight.gather(-1, order)
    spent = spent.cumsum(-1) - spent / 2
    keep = spent < density * weight.sum(-1, keepdim=True)
    return torch.zeros_like(must).flatten(lanes).scatter_(-1, order, keep).view_as(must) | must


def _held_before(scores: torch.Tensor, must: torch.Tensor) -> torch.Tensor:
    """For each block, the share of its row's total that is held by those that come before it."""
    first = scores.masked_fill(must, torch.inf)
    order = first.argsort(dim=-1, descending=True, stable=True)
    held = scores.gather(-1, order)
    before = held.cumsum(-1) - held
    total = held.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.empty_like(scores).scatter_(-1, order, before / total)
