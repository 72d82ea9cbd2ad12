"""The class of every head as Sparse VideoGen sees it, spatial or temporal, by the error of both over whole runs."""

from __future__ import annotations

from typing import Any

import torch

from dittools.calibrate.base import RowCalibrator, Size
from dittools.methods.base import AttentionCall
from dittools.methods.svg import SVG as Recipe
from dittools.runtime import Heard
from dittools.selectors.sampled import sampled_errors

SPARSITY = 0.8


class SVG(RowCalibrator):
    method = "svg"

    def __init__(self, size: Size):
        super().__init__(size)
        self.error = torch.zeros(size.layers, size.heads, 2, dtype=torch.float64)
        self.patterns: tuple | None = None

    def look(self, heard: Heard, rows: torch.Tensor, round: int) -> None:
        if self.patterns is None:
            call = AttentionCall(
                0, self.size.layers, "", 0, self.size.steps, heard.grid, SPARSITY, heard.scale,
                torch.Generator(), self.size.block_size,
            )  # fmt: skip
            self.patterns = Recipe().patterns(call, heard.q.device)
        masks = [pattern.rows(rows) for pattern in self.patterns]
        found = sampled_errors(heard.q, heard.k, heard.v, rows, masks, heard.scale)  # [2, B, H]
        self.error[heard.layer] += found.sum(1).T.cpu()

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        temporal = self.error[..., 1] < self.error[..., 0]
        classes = [["temporal" if t else "spatial" for t in row] for row in temporal.tolist()]
        section = {"by_step": False, "sparsity": SPARSITY, "classes": classes}
        return section, {"temporal": temporal.to(torch.uint8), "error": self.mean(self.error).float()}
