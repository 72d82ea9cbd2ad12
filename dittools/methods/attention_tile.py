"""Attention tile: every frame sees itself and a few reference frames, and those see and are seen by all.

Source: Ding et al., "Efficient-vDiT", arXiv 2502.06155. With k references among F frames, 2kF - k^2 + F - k of the F^2
frame pairs are kept. With a profile of its search every layer has its own k. Its distillation is not part of this
recipe.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

import numpy as np
import torch

from dittools.methods.base import AttentionCall, Plan
from dittools.methods.static import StaticVideo
from dittools.orders.raster import raster
from dittools.selectors.boxes import boxes_of
from dittools.selectors.geometric import Pattern, picture_share
from dittools.selectors.levels import grow, up_to
from dittools.selectors.searched import reference_counts, to_budget
from dittools.tokens import TokenGrid

AUTO = "auto"


@dataclass(frozen=True)
class AttentionTile(StaticVideo):
    """Order: raster. Selector: own frame, reference rows and columns. Budget: how many references, for each layer
    where a profile says what they are worth to it.
    """

    name: ClassVar[str] = "attention_tile"
    profile_use: ClassVar[str] = "given"
    summary: ClassVar[str] = "its own frame and k frames that everyone sees (Efficient-vDiT)"
    decides: ClassVar[tuple[str, ...]] = ("references",)

    references: int | str = field(
        default=AUTO, metadata={"help": "frames that see and are seen by all; auto: what the sparsity allows"}
    )

    def __post_init__(self):
        k = self.references
        if k != AUTO and (isinstance(k, bool) or not isinstance(k, Integral) or k < 0):
            raise ValueError(f"references must be `auto` or a whole number of at least 0, got {k!r}")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        if call.profile is None:
            return super().plan(q, k, v, call)
        if self.references != AUTO:
            raise ValueError(
                f"attention_tile was asked for {self.references} references and given {call.profile.name}, which "
                "decides them: use one of the two"
            )
        count, share, _ = self._found(call)
        pattern = call.keep((self, count, share), lambda: _counted(call, count, share))  # equal layers share it
        return call.remember((self, count, share, q.device), lambda: self.plan_of(pattern, call.grid, q.device))

    def asked(self, call: AttentionCall) -> float | None:
        if call.profile is None:
            return super().asked(call)
        return 1 - self._found(call)[2]  # of this layer: layers share a budget

    def _found(self, call: AttentionCall) -> tuple[int, float | None, float]:
        layers = call.sparse_layers or tuple(range(call.layers))
        return call.keep((self, layers, call.sparsity), lambda: self._search(call, layers))[call.layer]

    def _search(self, call: AttentionCall, layers: tuple[int, ...]) -> dict[int, tuple[int, float | None, float]]:
        """For each layer its references, the share it is moved to where that is not theirs, and what it is to keep."""
        order, level = _levels(call.grid, call.block_size)
        shares = [
            _share(up_to(call.grid, order, level(k), 1, call.block_size), call.grid, call.block_size)
            for k in range(call.grid.frames + 1)
        ]
        counts = reference_counts(call.profile, layers, call.density, shares)
        kept = to_budget([shares[k] for k in counts], call.density)
        aims = [shares[k] if share is None else share for k, share in zip(counts, kept, strict=True)]
        return dict(zip(layers, zip(counts, kept, aims, strict=True), strict=True))

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        order, level = _levels(grid, block_size)
        if self.references != AUTO:
            k = min(self.references, grid.frames)
            pattern, said = up_to(grid, order, level(k), 1, block_size), f"{k} reference frames"
        else:
            pattern, said = self._grown(grid, order, level, sparsity, block_size)
        return pattern.noting(
            f"{grid.frames} frames, {said}; {pattern.mask.density().item():.1%} of all pairs by blocks of {block_size}"
        )

    def _grown(self, grid, order, level, sparsity: float, block_size: int) -> tuple[Pattern, str]:
        # The most references that fit, evenly spread; of the one after them what is nearest.
        fits, too_many = 0, grid.frames + 1
        while too_many - fits > 1:
            k = (fits + too_many) // 2
            pattern = up_to(grid, order, level(k), 1, block_size)
            fits, too_many = (k, too_many) if _share(pattern, grid, block_size) <= 1 - sparsity else (fits, k)
        grown = grow(grid, order, level(fits), sparsity, block_size)
        more = f", and the nearest {grown.share:.0%} of what one more adds" if grown.beyond is not None else ""
        return grown.pattern, f"{fits + max(0, int(grown.level) - 1) if grown.level > 0 else 0} reference frames{more}"


def _share(pattern: Pattern, grid: TokenGrid, block_size: int) -> float:
    return picture_share(pattern.mask.keep[0, 0].numpy(), grid, block_size)


def _levels(grid: TokenGrid, block_size: int) -> tuple[torch.Tensor, Callable[[int], np.ndarray]]:
    """The order, and for k references the first rank of `tile_ranks` in each block pair: fp32 ``[M, M]``."""
    order = raster(grid)
    boxes = boxes_of(grid, order, block_size, flat=True)
    frame = boxes.low[:, 0]

    def level(k: int) -> np.ndarray:
        rank = tile_ranks(grid.frames, k)
        return boxes.least(lambda rows: rank[frame[rows]][:, frame])

    return order, level


def _counted(call: AttentionCall, k: int, share: float | None) -> Pattern:
    """The mask of k references; moved to a share of the pairs where one is given."""
    grid, size = call.grid, call.block_size
    order, level = _levels(grid, size)
    if share is None:
        pattern = up_to(grid, order, level(k), 1, size)
    else:
        pattern = grow(grid, order, level(k), 1 - share, size).pattern
    kept = pattern.mask.density().item()
    return pattern.noting(f"{k} of {grid.frames} frames are references in some layers, {kept:.1%} of their pairs")


def reference_frames(frames: int, k: int) -> list[int]:
    """k frames spread evenly: the middles of k equal stretches."""
    return [(2 * i + 1) * frames // (2 * k) for i in range(k)]


def tile_ranks(frames: int, k: int) -> np.ndarray:
    """For each frame pair, when it is kept: fp32 ``[F, F]``; 0 on the diagonal, 1 for the rows and columns of k
    evenly spread references, 2 and on for one more reference each, the frame farthest from those before it.
    """
    chosen = reference_frames(frames, k)
    rank = np.full((frames, frames), np.inf, dtype=np.float32)
    for reference in chosen:
        rank[reference] = rank[:, reference] = 1
    at = 1
    while len(chosen) < frames:
        left = [f for f in range(frames) if f not in chosen]
        # With none chosen yet the middle comes first.
        far = max(left, key=lambda f: (min((abs(f - c) for c in chosen), default=-abs(2 * f + 1 - frames)), -f))
        chosen.append(far)
        at += 1
        rank[far] = np.minimum(rank[far], at)
        rank[:, far] = np.minimum(rank[:, far], at)
    np.fill_diagonal(rank, 0)
    return rank
