"""Efficient-vDiT's search: the error of each layer when queries see their own frame and k reference frames.

Source: arXiv 2502.06155, sections 3.1 and 3.3.
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.calibrate.base import RowCalibrator, Size
from dittools.runtime import Heard
from dittools.selectors.sampled import sampled_errors
from dittools.tokens import TokenGrid


class AttentionTile(RowCalibrator):
    method = "attention_tile"

    def __init__(self, size: Size):
        super().__init__(size)
        self.error: torch.Tensor | None = None
        self.power = torch.zeros(size.layers, dtype=torch.float64)

    def look(self, heard: Heard, rows: torch.Tensor, round: int) -> None:
        frames = heard.grid.frames
        if self.error is None:
            self.error = torch.zeros(self.size.layers, frames + 1, dtype=torch.float64)
        masks = [tile_rows(heard.grid, count, rows) for count in range(frames + 1)]
        nothing = torch.zeros_like(masks[0])
        found = sampled_errors(heard.q, heard.k, heard.v, rows, [nothing, *masks], heard.scale)  # [C, B, H]
        found = found.sum(1).mean(1).cpu().double()
        self.power[heard.layer] += found[0]
        self.error[heard.layer] += found[1:]

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        density = [round(tile_density(self.grid.frames, count), 4) for count in range(self.grid.frames + 1)]
        section = {"by_step": False, "frames": self.grid.frames, "density": density}
        return section, {"error": self.mean(self.error).float(), "power": self.mean(self.power).float()}


def reference_frames(frames: int, count: int) -> list[int]:
    """``count`` frames spread evenly over the video: the middles of as many equal stretches."""
    return [(2 * n + 1) * frames // (2 * count) for n in range(count)]


def tile_density(frames: int, count: int) -> float:
    """Share of frame tiles kept: rows and columns of the references, and the diagonal."""
    return (2 * count * frames - count**2 + frames - count) / frames**2


def tile_rows(grid: TokenGrid, count: int, rows: torch.Tensor) -> torch.Tensor:
    """Which tokens these query tokens see with ``count`` reference frames: bool ``[n, S]``. Text sees and is seen."""
    frame = torch.full((grid.tokens,), -1, device=rows.device)
    frame[grid.video_slice] = grid.positions(rows.device)[:, 0]
    special = torch.isin(frame, torch.tensor([-1, *reference_frames(grid.frames, count)], device=rows.device))
    return (frame[rows][:, None] == frame) | special[rows][:, None] | special
