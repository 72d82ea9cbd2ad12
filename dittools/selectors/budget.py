"""Scores of blocks to a mask of the asked density: the one place where methods spend their budget."""

from __future__ import annotations

import torch
import torch.nn.functional as F

SCOPES = ("row", "head", "layer", "adaptive")
RANKINGS = ("score", "cumulative")
_GOLDEN = 0.6180339887498949
# Bits of a share from 0 to 1 in fp32, and how many are found at a time.
_LEVEL_BITS, _DIGIT = 30, 6
# A head that keeps this share of its mass can spare some of its budget (AdaSpa).
RECALL = 0.8


def spend(
    scores: torch.Tensor,
    query_sizes: torch.Tensor,
    key_sizes: torch.Tensor,
    density: float | torch.Tensor,
    *,
    scope: str = "row",
    ranking: str = "score",
    force: torch.Tensor | None = None,
) -> torch.Tensor:
    """Keep the best blocks of each scope until the asked share of its query-key pairs is kept.

    Forced blocks come first and count. A query block with none keeps its best key block, whatever the budget. What is
    kept counts in pairs, so ragged and variable blocks weigh what they hold. Nothing waits for the device.

    Args:
        scores: ``[B, H, Mq, Nk]``, more is better, no NaN; at least 0 with ranking "cumulative". Of equal scores
            the lower index wins.
        query_sizes, key_sizes: queries and keys in each block, ``[Mq]`` and ``[Nk]`` or with the lanes in front,
            ``[B or 1, H or 1, Mq]``. Blocks may be empty.
        density: share of the pairs to keep, in (0, 1]; for rows and heads also a tensor ``[B or 1, H]``, not checked.
        scope: who shares a budget. "row": each query block keeps the same share, which is what top-k means; rows
            forced to more take it from the others. "head": a head spends where its scores are highest. "layer":
            all heads of a batch element spend one budget. "adaptive": rows share evenly within a head, and heads
            that hold their mass in few blocks leave some to those that do not (`head_levels`); at least 0.
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
    if not isinstance(density, torch.Tensor) and not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, got {density:g}")
    scores = scores.float()
    rows, columns = scores.shape[-2:]
    queries = query_sizes.to(scores.device, torch.float64).expand(*scores.shape[:2], rows)  # [B, H, Mq]
    keys = key_sizes.to(scores.device, torch.float64).expand(*scores.shape[:2], columns)  # [B, H, Nk]
    must = torch.zeros_like(scores, dtype=torch.bool)
    best = scores.argmax(-1, keepdim=True)  # [B, H, Mq, 1], the first of equal ones
    if force is None:
        must.scatter_(-1, best, True)
    else:
        force = force.expand(scores.shape)
        must = must.scatter_(-1, best, ~force.any(-1, keepdim=True)) | force
    if scope in ("row", "adaptive"):
        keep = _rows(scores, queries, keys, density, must)
        if scope == "row":
            return keep
        weight = scores * queries[..., None]
        held = (weight * keep).sum((-1, -2)) / weight.sum((-1, -2)).clamp_min(torch.finfo(torch.float32).tiny)
        return _rows(scores, queries, keys, head_levels(held, density), must)
    spend_pool = _nucleus if ranking == "cumulative" else _pool
    return spend_pool(scores, queries, keys, density, must, lanes=2 if scope == "head" else 1)


def head_levels(recall: torch.Tensor, density: float) -> torch.Tensor:
    """Budgets in three levels, the mean unchanged: the surest heads give to the least sure.

    Of n heads that hold more than `RECALL` of their mass at ``density`` d, up to half of all, the n best get d / 2 and
    the n worst 3 d / 2 (less far apart where that would be more than everything). Few levels keep heads balanced.

    Args:
        recall: ``[B, H]``, share of its mass that each head keeps at ``density``.
        density: share of pairs to keep on average.

    Returns:
        fp32 ``[B, H]``. Source: AdaSpa (arXiv 2502.21079), whose sparsities (1 + s) / 2, s, (3 s - 1) / 2 these are.
    """
    heads = recall.shape[-1]
    sure = (recall > RECALL).sum(-1, keepdim=True).clamp_max(heads // 2)  # [B, 1]
    rank = recall.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    step = min(density / 2, 1 - density)
    return density - step * (rank < sure).float() + step * (rank >= heads - sure).float()


def _rows(scores, queries, keys, density, must: torch.Tensor) -> torch.Tensor:
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


def _pool(scores, queries, keys, density, must: torch.Tensor, lanes: int) -> torch.Tensor:
    """One budget for everything behind the first ``lanes`` dimensions, spent on the best."""
    weight = (queries[..., None] * keys[:, :, None]).flatten(lanes)
    order = scores.masked_fill(must, torch.inf).flatten(lanes).argsort(dim=-1, descending=True, stable=True)
    spent = weight.gather(-1, order)
    spent = spent.cumsum(-1) - spent / 2
    if isinstance(density, torch.Tensor):
        density = density[..., None]
    keep = spent < density * weight.sum(-1, keepdim=True)
    return torch.zeros_like(must).flatten(lanes).scatter_(-1, order, keep).view_as(must) | must


def _nucleus(scores, queries, keys, density, must: torch.Tensor, lanes: int) -> torch.Tensor:
    """One budget for everything behind the first ``lanes`` dimensions, spent on the fewest blocks of each row that hold
    one common share of their row.

    Rows are sorted, and nothing else: the share is found from its highest bits down, as in each row the blocks up to a
    share are the first ones.
    """
    order = scores.masked_fill(must, torch.inf).argsort(dim=-1, descending=True, stable=True)  # [B, H, Mq, Nk]
    held = scores.gather(-1, order)
    total = held.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    share = ((held.cumsum(-1) - held) / total).clamp_(0, 1)  # of the row, held by better blocks
    # Numbers from 0 up order as their bits do. What must be kept comes before all others.
    level = (share.view(torch.int32) + 1).masked_fill_(must.gather(-1, order), 0)
    del held, total, share
    size = keys.float()[:, :, None].expand(order.shape).gather(-1, order)
    ends = F.pad(size.cumsum(-1), (1, 0))  # keys in the first blocks of a row, fp32 [B, H, Mq, Nk + 1]
    budget = queries.sum(-1) * keys.sum(-1)  # [B, H]
    budget = density * (budget.sum(-1) if lanes == 1 else budget)  # [B] or [B, H]

    def pairs(level_of_pool: torch.Tensor) -> torch.Tensor:
        """Pairs in blocks up to each of some levels: [B, n] or [B, H, n] -> fp64 of that shape."""
        asked = level_of_pool.view(*budget.shape, *[1] * (3 - lanes), -1).expand(*order.shape[:3], -1).contiguous()
        first = torch.searchsorted(level, asked, right=True)  # [B, H, Mq, n], blocks
        return (ends.gather(-1, first) * queries[..., None]).flatten(lanes, 2).sum(lanes)

    found = torch.zeros_like(budget, dtype=torch.int32)
    digits = torch.arange(1, 1 << _DIGIT, dtype=torch.int32, device=scores.device)
    for shift in range(_LEVEL_BITS - _DIGIT, -1, -_DIGIT):
        below = pairs(found[..., None] + (digits << shift) - 1) < budget[..., None]
        found = found + (below.sum(-1, dtype=torch.int32) << shift)
    # Of blocks at the very share that meets the budget, the first ones are kept.
    at = found.view(*budget.shape, *[1] * (4 - lanes))
    tied = level == at
    inside = (size * tied).cumsum(-1)  # [B, H, Mq, Nk]
    rows = (inside[..., -1] * queries).flatten(lanes)  # fp64 [B, H Mq] or [B, H, Mq]
    rows = (rows.cumsum(-1) - rows + pairs(found[..., None] - 1)).view(queries.shape)[..., None]
    spent = (inside - size / 2) * queries.float()[..., None]  # exact: fewer pairs in a row than fp32 can count
    keep = (level < at) | (tied & (spent < budget.view(at.shape) - rows))
    return torch.zeros_like(must).scatter_(-1, order, keep) | must
