"""Efficient-vDiT's search: the error of each layer when queries see their own frame and k reference frames.

Source: arXiv 2502.06155, sections 3.1 and 3.3.
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.calibrate.base import RowCalibrator
from dittools.calibrate.key_groups import KeyGroups, errors_by_group
from dittools.observer import AttentionEvent
from dittools.selection.reference_frames import reference_frames
from dittools.tokens import TokenGrid


class AttentionTile(RowCalibrator):
    method = "attention_tile"
    search: References | None = None
    error: torch.Tensor | None = None
    power: torch.Tensor | None = None

    def prepare(self, event: AttentionEvent) -> None:
        self.search = References(event.grid, event.q.device)
        if self.error is None:
            sums = torch.zeros(self.size.layers, event.grid.frames + 2, dtype=torch.float64, device=event.q.device)
            self.power, self.error = sums[:, 0], sums[:, 1:]

    def look(self, event: AttentionEvent, rows: torch.Tensor, round: int) -> None:
        kept = self.search.kept(rows)
        kept = torch.cat((torch.zeros_like(kept[:1]), kept))  # what a layer loses that gives zeros: all its output
        found = errors_by_group(event, rows, self.search.keys, kept).sum(1).mean(1)  # [C]
        self.power[event.layer] += found[0]
        self.error[event.layer] += found[1:]

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        density = [round(tile_density(self.grid.frames, count), 4) for count in range(self.grid.frames + 1)]
        arrays = {name: self.mean(sums).float() for name, sums in (("error", self.error), ("power", self.power))}
        return self.section(frames=self.grid.frames, density=density), arrays


def tile_density(frames: int, count: int) -> float:
    """Share of frame tiles kept: rows and columns of the references, and the diagonal."""
    return (2 * count * frames - count**2 + frames - count) / frames**2


class References:
    """Which frames a query sees with 0 to all frames as references. Text sees and is seen.

    Attributes:
        keys: a group for each frame, and text behind them.
    """

    def __init__(self, grid: TokenGrid, device: torch.device | str):
        self.keys = KeyGroups.of_video(grid.positions()[:, 0].contiguous(), grid, device)
        special = torch.zeros(grid.frames + 1, len(self.keys.tokens), dtype=torch.bool)
        for count in range(grid.frames + 1):
            special[count, reference_frames(grid.frames, count)] = True
        self._special = special.to(device) | self.keys.text  # [C, G]

    def kept(self, rows: torch.Tensor) -> torch.Tensor:
        """Groups that these query tokens see, by number of references: bool ``[C, n, G]``."""
        own = self.keys.of_token[rows]
        same = own[:, None] == torch.arange(len(self.keys.tokens), device=rows.device)  # [n, G]
        return same | self._special[:, own, None] | self._special[:, None]
