"""Sparse VideoGen: every head is either spatial or temporal; find out which, and give it only that.

Source: Xi et al., "Sparse VideoGen", arXiv 2502.01776. Where the published code departs from the paper's
idea, this follows the idea: rows are probed over the whole sequence, with the very masks that run; the first
frame is kept in original coordinates for both patterns; and all of it fits into the asked budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from dittools.kernels.probe.dispatch import probe_errors
from dittools.kernels.upload import upload
from dittools.methods.base import AttentionCall, Method, Plan
from dittools.methods.options import option
from dittools.orders.raster import raster
from dittools.orders.token_major import token_major
from dittools.scoped_cache import process_cached
from dittools.selection.geometric import Pattern, band_pattern
from dittools.selection.sampled import stratified_rows
from dittools.selection.two_patterns import TwoPatterns
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class SVG(Method):
    """Order: raster for spatial heads, token-major for temporal ones. Selector: a band in that order, the
    first frame, text. Budget: the band, as wide for every head. Decided per layer, head and branch by the error on
    sampled rows.
    """

    name: ClassVar[str] = "svg"
    knows_heads: ClassVar[bool] = True
    video_only: ClassVar[bool] = True
    profile_use: ClassVar[str] = "given"
    summary: ClassVar[str] = "per head: near frames, or the same place in all frames (Sparse VideoGen)"

    probe_rows: int | str = option(
        "auto", "query rows probed per call; auto: 1 % of the tokens, 16 to 64", kind="count", min=1
    )
    sink: bool = option(True, "keep the first frame for every query")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        both = call.run_cache.get_or_make(
            ("svg", call.sparsity, q.device), lambda: TwoPatterns.of(*self.patterns(call, q.device))
        )
        if call.profile is not None:
            return pattern_plan(both, known_temporal(q, call))
        asked = min(max(call.grid.tokens // 100, 16), 64) if self.probe_rows == "auto" else self.probe_rows
        rows = upload(stratified_rows(call.grid.tokens, asked, call.generator), q.device)
        spatial, temporal = probe_errors(q.index_select(1, rows), k, v, both.rows(rows), scale=call.scale)
        return pattern_plan(both, temporal < spatial)

    def patterns(self, call: AttentionCall, device: torch.device) -> tuple[Pattern, Pattern]:
        """(spatial, temporal): near in raster distance, and near in patch position whatever the frame."""
        spatial, temporal = bands(call.grid, call.sparsity, call.block_size, self.sink)
        return spatial.to(device), temporal.to(device)


@process_cached(4)
def bands(grid: TokenGrid, sparsity: float, block_size: int, sink: bool) -> tuple[Pattern, Pattern]:
    """`SVG.patterns` on the CPU, kept for later runs: making them keeps the GPU waiting for 20 to 100 ms."""
    budget = {"sparsity": sparsity, "block_size": block_size, "sink": sink}
    index = torch.arange(grid.video)
    spatial = band_pattern(grid, raster(grid), index, **budget)
    return spatial, band_pattern(grid, token_major(grid), index % grid.frame, **budget)


def known_temporal(q: torch.Tensor, call: AttentionCall) -> torch.Tensor:
    """Which heads a profile found temporal, bool ``[B, H]``: nothing is probed then."""
    model = call.profile.model
    table = call.profile.array("svg.temporal", (model.layers, model.heads), torch.uint8)[call.layer]
    return call.heads.of(table, 0).bool().to(q.device).expand(q.shape[0], -1)


def pattern_plan(both: TwoPatterns, temporal: torch.Tensor) -> Plan:
    """The plan in which heads run the spatial pattern or, where ``temporal`` ``[B, H]`` says so, the other."""
    order, mask = both.select(temporal)
    facts = {"spatial": ~temporal, "temporal": temporal}
    return Plan(order, mask, facts, both.notes, pack=lambda: partial(pattern_plan, both, temporal))
