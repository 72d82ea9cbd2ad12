"""Attention tile: every frame sees itself and a few reference frames, and those see and are seen by all.

Source: Ding et al., "Efficient-vDiT", arXiv 2502.06155. With k references among F frames, 2kF - k^2 + F - k of the F^2
frame pairs are kept. With a profile of its search every layer has its own k. Its distillation is not part of this
recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Plan
from dittools.methods.options import AUTO, option
from dittools.methods.static import Static
from dittools.selection.geometric import Pattern
from dittools.selection.reference_frames import Choice, FrameTiles, search_references


@dataclass(frozen=True)
class AttentionTile(Static):
    """Order: raster. Selector: own frame, reference rows and columns. Budget: how many references, for each layer
    where a profile says what they are worth to it.
    """

    name: ClassVar[str] = "attention_tile"
    knows_heads: ClassVar[bool] = True
    video_only: ClassVar[bool] = True
    profile_use: ClassVar[str] = "given"
    summary: ClassVar[str] = "its own frame and k frames that everyone sees (Efficient-vDiT)"
    decides: ClassVar[tuple[str, ...]] = ("references",)
    reads: ClassVar[tuple[str, ...]] = ()

    references: int | str = option(
        AUTO, "frames that see and are seen by all; auto: what the sparsity allows", kind="count", min=0
    )

    def pattern(self, grid, sparsity: float, block_size: int) -> Pattern:
        frames = FrameTiles(grid, block_size)
        if self.references == AUTO:
            pattern, said = frames.grown(sparsity)
        else:
            count = min(self.references, grid.frames)
            pattern, said = frames.counted(count), f"{count} reference frames"
        kept = pattern.mask.density().item()
        return pattern.noting(f"{grid.frames} frames, {said}; {kept:.1%} of all pairs by blocks of {block_size}")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        if call.profile is None:
            return super().plan(q, k, v, call)
        if self.references != AUTO:
            raise ValueError(
                f"attention_tile was asked for {self.references} references and given {call.profile.name}, which "
                "decides them: use one of the two"
            )
        key = self, *self._choice(call)[:2]  # layers with equal choices share a mask
        pattern = call.profile_cache.get_or_make(key, lambda: self._searched(call))
        return call.run_cache.get_or_make((*key, q.device), lambda: self.plan_of(pattern, call.grid, q.device))

    def _searched(self, call: AttentionCall) -> Pattern:
        frames, (count, share, _) = FrameTiles(call.grid, call.block_size), self._choice(call)
        pattern = frames.counted(count) if share is None else frames.moved(count, share)
        kept = pattern.mask.density().item()
        return pattern.noting(
            f"{count} of {call.grid.frames} frames are references in some layers, {kept:.1%} of their pairs"
        )

    def asked(self, call: AttentionCall) -> float | None:
        if call.profile is None:
            return super().asked(call)
        return 1 - self._choice(call).aim  # of this layer: layers share a budget

    def _choice(self, call: AttentionCall) -> Choice:
        layers = call.sparse_layers or tuple(range(call.layers))
        key = self, layers, call.sparsity
        return call.profile_cache.get_or_make(key, lambda: search_references(call, layers))[call.layer]
