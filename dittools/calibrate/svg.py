"""The class of every head as Sparse VideoGen sees it, spatial or temporal, by the error of both over whole runs."""

from __future__ import annotations

from typing import Any

import torch

from dittools.calibrate.base import RowCalibrator
from dittools.calibrate.key_groups import KeyGroups, errors_by_group
from dittools.methods.base import AttentionCall
from dittools.methods.svg import SVG as Recipe
from dittools.observer import AttentionEvent

SPARSITY = 0.8


class SVG(RowCalibrator):
    method = "svg"
    error: torch.Tensor | None = None
    patterns: list[tuple[KeyGroups, torch.Tensor]]  # blocks of an order, and those kept, [M, M]

    def prepare(self, event: AttentionEvent) -> None:
        device = event.q.device
        call = AttentionCall(
            0, self.size.layers, "", 0, self.size.steps, event.grid, SPARSITY, event.scale,
            torch.Generator(), self.size.block_size,
        )  # fmt: skip
        patterns = Recipe().patterns(call, torch.device("cpu"))
        self.patterns = [(KeyGroups.of(p.block_of_token, device), p.mask.keep[0, 0].to(device)) for p in patterns]
        if self.error is None:
            self.error = torch.zeros(self.size.layers, self.size.heads, 2, dtype=torch.float64, device=device)

    def look(self, event: AttentionEvent, rows: torch.Tensor, round: int) -> None:
        for n, (keys, keep) in enumerate(self.patterns):
            found = errors_by_group(event, rows, keys, keep[keys.of_token[rows]][None])  # [1, B, H]
            self.error[event.layer, :, n] += found[0].sum(0)

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        error = self.error.cpu()
        temporal = error[..., 1] < error[..., 0]
        classes = [["temporal" if t else "spatial" for t in row] for row in temporal.tolist()]
        arrays = {"temporal": temporal.to(torch.uint8), "error": self.mean(error).float()}
        return self.section(sparsity=SPARSITY, classes=classes), arrays
