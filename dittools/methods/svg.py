"""Sparse VideoGen: every head is either spatial or temporal; find out which, and give it only that.

Source: Xi et al., "Sparse VideoGen", arXiv 2502.01776. Where the published code departs from the paper's
idea, this follows the idea: rows are probed over the whole sequence, with the very masks that run; the first
frame is kept in original coordinates for both patterns; and all of it fits into the asked budget.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from typing import ClassVar

import torch

from dittools.methods.base import AttentionCall, Method, Plan
from dittools.methods.pair import Pair
from dittools.orders.raster import raster
from dittools.orders.token_major import token_major
from dittools.selectors.geometric import Pattern, band_pattern
from dittools.selectors.sampled import errors_of, stratified_rows
from dittools.tokens import TokenGrid
from dittools.upload import upload


@dataclass(frozen=True)
class SVG(Method):
    """Order: raster for spatial heads, token-major for temporal ones. Selector: a band in that order, the
    first frame, text. Budget: the band, as wide for every head. Decided per layer, head and branch by the error on
    sampled rows.
    """

    name: ClassVar[str] = "svg"
    profile_use: ClassVar[str] = "given"
    summary: ClassVar[str] = "per head: near frames, or the same place in all frames (Sparse VideoGen)"

    probe_rows: int | str = field(
        default="auto", metadata={"help": "query rows probed per call; auto: 1 % of the tokens, 16 to 64"}
    )
    sink: bool = field(default=True, metadata={"help": "keep the first frame for every query"})

    def __post_init__(self):
        count = self.probe_rows
        if count != "auto" and (isinstance(count, bool) or not isinstance(count, Integral) or count < 1):
            raise ValueError(f"probe_rows must be 'auto' or a whole number of at least 1, got {count!r}")
        if not isinstance(self.sink, bool):
            raise ValueError(f"sink must be True or False, got {self.sink!r}")

    def why_not(self, grid, block_size: int) -> str | None:
        if grid.frames < 2:
            return f"{self.name} needs a video, and this run has {grid.frames} frame"
        return super().why_not(grid, block_size)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        pair = call.remember(("svg", call.sparsity, q.device), lambda: Pair.of(*self.patterns(call, q.device)))
        if call.profile is not None:
            return pair.pick(*known_classes(q, call))
        asked = min(max(call.grid.tokens // 100, 16), 64) if self.probe_rows == "auto" else self.probe_rows
        rows = upload(stratified_rows(call.grid.tokens, asked, call.generator), q.device)
        spatial_error, temporal_error = errors_of(q, k, v, rows, pair.rows(rows), call.scale)
        temporal = temporal_error < spatial_error  # [B, H]
        return pair.pick(temporal, {"spatial": ~temporal, "temporal": temporal})

    def patterns(self, call: AttentionCall, device: torch.device) -> tuple[Pattern, Pattern]:
        """(spatial, temporal): near in raster distance, and near in patch position whatever the frame."""
        spatial, temporal = bands(call.grid, call.sparsity, call.block_size, self.sink)
        return spatial.to(device), temporal.to(device)


@lru_cache(maxsize=4)
def bands(grid: TokenGrid, sparsity: float, block_size: int, sink: bool) -> tuple[Pattern, Pattern]:
    """`SVG.patterns` on the CPU, kept for later runs: making them keeps the GPU waiting for 20 to 100 ms."""
    budget = {"sparsity": sparsity, "block_size": block_size, "sink": sink}
    index = torch.arange(grid.video)
    spatial = band_pattern(grid, raster(grid), index, **budget)
    return spatial, band_pattern(grid, token_major(grid), index % grid.frame, **budget)


def known_classes(q: torch.Tensor, call: AttentionCall) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Which heads a profile found temporal, bool ``[B, H]``, and their counts: nothing is probed then."""
    model = call.profile.model
    table = call.profile.array("svg.temporal", (model.layers, model.heads), torch.uint8)[call.layer]
    temporal = table.bool().to(q.device).expand(q.shape[0], -1)
    return temporal, {"spatial": ~temporal, "temporal": temporal}
