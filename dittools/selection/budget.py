"""Scores of blocks to a mask of the asked density: the one place where methods spend their budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dittools.kernels.topk_mask.dispatch import topk_mask_per_head, topk_mask_per_row
from dittools.kernels.topk_mask.share import must_keep
from dittools.ranks import ALL, Heads
from dittools.selection.areas import Area, AreaPair, alone

SCOPES = ("row", "head", "layer", "adaptive")
POOLED = ("layer", "adaptive")
"""Scopes in which the heads of a layer share a budget."""
RANKINGS = ("score", "cumulative")
# A head that keeps this share of its mass can spare some of its budget (AdaSpa).
RECALL = 0.8


def select_topk_blocks(
    scores: torch.Tensor,
    query_sizes: torch.Tensor,
    key_sizes: torch.Tensor,
    density: float | torch.Tensor,
    *,
    scope: str = "row",
    ranking: str = "score",
    force: torch.Tensor | None = None,
    heads: Heads = ALL,
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
        heads: which of the layer's heads these are: heads that share a budget do so with those of other ranks.

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
    if scope == "layer" and not heads.alone:
        lanes = scores.shape[1]
        query_sizes, key_sizes, force = (_of_all(x, lanes, heads) for x in (query_sizes, key_sizes, force))
        how = {"scope": scope, "ranking": ranking, "force": force}
        return heads.of(select_topk_blocks(heads.gather(scores, 1), query_sizes, key_sizes, density, **how), 1)
    budget = {"query_sizes": query_sizes, "key_sizes": key_sizes, "force": force}
    if scope in ("row", "adaptive"):
        keep = topk_mask_per_row(scores, density=density, **budget)
        if scope == "row":
            return keep
        weight = scores * query_sizes.to(scores.device)[..., None]
        held = (weight * keep).sum((-1, -2)) / weight.sum((-1, -2)).clamp_min(torch.finfo(torch.float32).tiny)
        levels = heads.of(head_levels(heads.gather(held, 1), density), 1)
        return topk_mask_per_row(scores, density=levels, **budget)
    if ranking == "cumulative":
        scores = -_held_before(scores, must_keep(scores, force, key_sizes))
    return topk_mask_per_head(scores, density=density, across_heads=scope == "layer", **budget)


Segment = "tuple[slice, torch.Tensor]"
"""Blocks side by side, and what `select_topk_blocks` takes as their sizes."""


def select_topk_blocks_apart(
    scores: torch.Tensor, queries: Sequence[Segment], keys: Sequence[Segment], density: Callable, *, force=None, **how
) -> torch.Tensor:
    """`select_topk_blocks` for each segment of queries with each segment of keys by itself; blocks in no segment keep
    all and are kept by all.

    Args:
        scores, force: as `select_topk_blocks`; how: its scope, ranking and heads.
        queries, keys: segments that do not overlap.
        density: (i, j) -> that of the run i of queries and the run j of keys.
    """
    keep = torch.ones_like(scores, dtype=torch.bool)
    for i, (rows, query_sizes) in enumerate(queries):
        for j, (columns, key_sizes) in enumerate(keys):
            place = (..., rows, columns)
            held = None if force is None else force.expand(scores.shape)[place]
            keep[place] = select_topk_blocks(scores[place], query_sizes, key_sizes, density(i, j), force=held, **how)
    return keep


def select_topk_blocks_by_area(
    scores: torch.Tensor, sizes: torch.Tensor, areas: Sequence[Area], density: float, **how
) -> torch.Tensor:
    """`select_topk_blocks` with a budget for each kind of pair; text keeps all and is kept by all.

    Args:
        scores: as `select_topk_blocks`.
        sizes: int64 ``[M]``, positions in each block.
        areas: of those blocks.
        density: share to keep of the pairs of each kind.
        how: scope, ranking and heads, as there, and force, with rows and columns of blocks with text.
    """
    if alone(areas, len(sizes)):
        return select_topk_blocks(scores, sizes, sizes, density, **how)
    runs = [(area.blocks, area.sizes(scores.device)) for area in areas]
    return select_topk_blocks_apart(
        scores, runs, runs, lambda i, j: AreaPair(areas[i], areas[j]).density(density), **how
    )


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


def _of_all(x: torch.Tensor | None, lanes: int, heads: Heads) -> torch.Tensor | None:
    """What goes with scores of ``lanes`` heads, ``[B or 1, H or 1, ...]`` or without lanes, for all heads."""
    if x is None or x.ndim < 3:
        return x
    if heads.least == 1:  # one head, or one for all: no rank may take it for what others do not
        x = x.expand(-1, lanes, *x.shape[2:])
    return heads.gather(x, 1) if x.shape[1] == lanes else x


def _held_before(scores: torch.Tensor, must: torch.Tensor) -> torch.Tensor:
    """For each block, the share of its row's total that is held by those that come before it."""
    first = scores.masked_fill(must, torch.inf)
    order = first.argsort(dim=-1, descending=True, stable=True)
    held = scores.gather(-1, order)
    before = held.cumsum(-1) - held
    total = held.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.empty_like(scores).scatter_(-1, order, before / total)
