"""The best blocks of rows, or of whole heads, while their pairs fit into a share: a mask without a sort.

Best first: forced blocks, then by score, and of equal scores the lower index. A row of which nothing that holds keys is
forced keeps its best block that holds keys in any case.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from dittools.kernels.choice import picks_triton

# A row stands in the registers of one Triton program.
MAX_TRITON_BLOCKS = 8192
HALVINGS = 30
_GOLDEN = 0.6180339887498949


def fill_rows(
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
    if picks_triton(implementation, scores, reason=_too_wide(scores)):
        from dittools.kernels.fill_triton import triton_fill_rows

        return triton_fill_rows(scores, queries, keys, density, force, rounding(scores.shape[-2], scores.device))
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


def fill_lanes(
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

    Args, returns: as `fill_rows`, but heads that share have one density. A block is kept when its
    middle still lies within the share.
    """
    queries, keys = _sizes(scores, query_sizes, key_sizes)
    if picks_triton(implementation, scores, reason=_too_wide(scores)):
        from dittools.kernels.fill_triton import triton_fill_lanes

        return triton_fill_lanes(scores, queries, keys, density, across_heads, force)
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


def must_keep(scores: torch.Tensor, force: torch.Tensor | None, key_sizes: torch.Tensor) -> torch.Tensor:
    """What is kept whatever the share: forced blocks, and the best of each row in which none of these holds a key.

    Args:
        scores: ``[B, H, Mq, Nk]``. force: broadcastable to them. key_sizes: broadcastable to ``[B, H, Nk]``.

    Returns:
        bool, as the scores. The best of a row is the first of equal ones among blocks that hold keys: an empty one
        would leave the row nothing to see.
    """
    must = torch.zeros_like(scores, dtype=torch.bool)
    held = (key_sizes > 0).to(scores.device)[..., None, :]
    # A score of -inf beside no other still stands above an empty block.
    lowest = torch.finfo(scores.dtype).min
    best = scores.clamp_min(lowest).masked_fill(~held, -torch.inf).argmax(-1, keepdim=True)  # [B, H, Mq, 1]
    if force is None:
        return must.scatter_(-1, best, True)
    force = force.expand(scores.shape)
    return must.scatter_(-1, best, ~(force & held).any(-1, keepdim=True)) | force


@lru_cache(maxsize=16)
def rounding(rows: int, device: torch.device) -> torch.Tensor:
    """How much of a block must fit into what is left of a row for it to be kept: fp64 ``[rows]`` in [0, 1).

    Multiples of the golden ratio fall evenly into it, so that together rows keep their share.
    """
    with torch.inference_mode(False):
        return (torch.arange(rows, device=device, dtype=torch.float64) * _GOLDEN + 0.5) % 1


def _sizes(scores: torch.Tensor, query_sizes: torch.Tensor, key_sizes: torch.Tensor) -> tuple[torch.Tensor, ...]:
    rows, columns = scores.shape[-2:]
    return (
        query_sizes.to(scores.device).expand(*scores.shape[:2], rows),
        key_sizes.to(scores.device).expand(*scores.shape[:2], columns),
    )


def _too_wide(scores: torch.Tensor) -> str | None:
    if max(scores.shape[-2:]) <= MAX_TRITON_BLOCKS:
        return None
    return f"it takes at most {MAX_TRITON_BLOCKS} query and key blocks, got {list(scores.shape[-2:])}"
