"""What a plan keeps of each kind of pair: picture with picture, picture with text, and so on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.upload import upload
from dittools.scoped_cache import process_cached
from dittools.tokens import TokenGrid

if TYPE_CHECKING:
    from dittools.methods.base import Plan


def kinds_of(grid: TokenGrid) -> dict[str, int]:
    """Tokens of each kind of part in a sequence, the picture first."""
    found = {"picture": 0}
    for part, _ in grid.placed:
        found[part.kind] = found.get(part.kind, 0) + part.tokens
    return found


def kept_by_kind(plan: Plan, grid: TokenGrid) -> torch.Tensor | None:
    """Share of the pairs of each two kinds (`kinds_of`) that a plan keeps, mean of all heads: fp32 ``[kinds, kinds]``.

    None where the sequence is the picture alone: that is the plan's density. Nothing waits for the device.
    """
    if grid.tokens == grid.video:
        return None
    if grid not in plan.by_kind:
        plan.by_kind[grid] = _kept(plan, grid)
    return plan.by_kind[grid]


def _kept(plan: Plan, grid: TokenGrid) -> torch.Tensor:
    if plan.keys is not None:
        return _of_fewer_keys(plan, grid)
    if isinstance(plan.mask, BlockMask):
        mean = plan.mask.mean_keep()
        query, key = (_held(grid, partition, mean.device) for partition in (plan.mask.query, plan.mask.key))
        kept = query @ mean @ key.T
        return kept if plan.rows is None else kept + _of_rows(plan, grid)
    places = _places(grid, plan.mask.keep.device)
    query, key = (_overlap(side.offsets(), *places) for side in (plan.mask.query, plan.mask.key))
    return (query @ plan.mask.keep.float() @ key.transpose(-1, -2)).mean((0, 1))


def _of_rows(plan: Plan, grid: TokenGrid) -> torch.Tensor:
    """What queries beside the mask add, by their kind: fp32 ``[kinds, 1]``."""
    rows = plan.rows.queries
    start, stop, counts = _places(grid, rows.device)
    inside = ((rows >= start[:, :, None]) & (rows < stop[:, :, None])).sum((1, 2))  # [kinds]
    return (inside / counts * (len(plan.rows.heads) / plan.mask.keep.shape[1]))[:, None]


def _of_fewer_keys(plan: Plan, grid: TokenGrid) -> torch.Tensor:
    keys = plan.keys
    start, stop, counts = _places(grid, keys.tokens.device)
    inside = (keys.tokens >= start[:, :, None]) & (keys.tokens < stop[:, :, None])  # [kinds, parts, n]
    picked = inside.sum((1, 2)) / counts
    few = stop.clamp_max(keys.queries.stop) - start.clamp_min(keys.queries.start)
    few = (few.clamp_min(0).sum(1) / counts)[:, None]
    return few * picked + (1 - few)


@process_cached(16)
def _places(grid: TokenGrid, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Where the parts of each kind begin and end, int64 ``[kinds, parts]``; tokens of each kind, fp32 ``[kinds]``."""
    kinds = kinds_of(grid)
    at = [[place for part, place in grid.placed if part.kind == kind] for kind in kinds]
    most = max(map(len, at))
    with torch.inference_mode(False):
        start, stop = (
            torch.tensor([[getattr(p, side) for p in places] + [0] * (most - len(places)) for places in at])
            for side in ("start", "stop")
        )
        return tuple(upload(x, device) for x in (start, stop, torch.tensor(list(kinds.values())).float()))


@process_cached(16)
def _held(grid: TokenGrid, partition: Partition, device: torch.device) -> torch.Tensor:
    """`_overlap` of even blocks, which the plans of a run share: fp32 ``[kinds, M]``."""
    with torch.inference_mode(False):
        ends = torch.arange(partition.count + 1, device=device) * partition.size
        return _overlap(ends.clamp_max(partition.length), *_places(grid, device))


def _overlap(ends: torch.Tensor, start: torch.Tensor, stop: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Share of the tokens of each kind that each block holds: fp32 ``[.., kinds, M]``; ``ends`` is ``[.., M + 1]``."""
    low, high = ends[..., None, None, :-1], ends[..., None, None, 1:]
    held = torch.minimum(high, stop[..., None]) - torch.maximum(low, start[..., None])
    return held.clamp_min(0).sum(-2) / counts[:, None]
