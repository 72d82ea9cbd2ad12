"""Sliding Tile Attention's search: the error of every window of tiles, by group of steps, layer and head.

Source: arXiv 2502.04507, section 4.2 and its mask search.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from dittools.calibrate.base import RowCalibrator, Size, fill_groups
from dittools.runtime import Heard
from dittools.selectors.sampled import sampled_errors
from dittools.tokens import TokenGrid

GROUPS = 4
TILES = {16: (1, 4, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (2, 8, 8)}
"""Frames, rows and columns of a tile, by block size: a tile is a block."""
MOST_WIDTHS = 4


class STA(RowCalibrator):
    method, by_step, sampled_steps = "sta", True, 8

    def __init__(self, size: Size):
        super().__init__(size)
        self.tile = TILES[size.block_size]
        self.groups = [step * GROUPS // size.steps for step in range(size.steps)]
        self.windows: list[tuple[int, int, int]] = []
        self.error: torch.Tensor | None = None
        self.count = torch.zeros(GROUPS, size.layers)

    def look(self, heard: Heard, rows: torch.Tensor, round: int) -> None:
        if self.error is None:
            self.windows = windows(heard.grid, self.tile)
            lanes = (GROUPS, self.size.layers, self.size.heads, len(self.windows))
            self.error = torch.zeros(lanes, dtype=torch.float64)
        masks = [window_rows(heard.grid, self.tile, window, rows) for window in self.windows]
        found = sampled_errors(heard.q, heard.k, heard.v, rows, masks, heard.scale)  # [C, B, H]
        group = self.groups[heard.tick.step]
        self.error[group, heard.layer] += found.sum(1).T.cpu()
        self.count[group, heard.layer] += heard.q.shape[0]

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        every = torch.arange(self.grid.tokens)[:: max(1, self.grid.tokens // 256)]
        density = [window_rows(self.grid, self.tile, window, every).float().mean().item() for window in self.windows]
        section = {
            "by_step": True,
            "groups": self.groups,
            "tile": list(self.tile),
            "windows": [list(window) for window in self.windows],
            "density": [round(share, 4) for share in density],
        }
        error = self.error / self.count.clamp_min(1)[..., None, None]
        return section, {"error": fill_groups(error, self.count > 0).float()}


def windows(grid: TokenGrid, tile: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Windows in tiles along (frames, rows, columns): odd widths up to the whole axis, at most four an axis."""
    along = []
    for axis, side in zip(grid.shape, tile, strict=True):
        count = -(-axis // side)
        odd = list(range(1, count, 2))
        few = odd if len(odd) < MOST_WIDTHS else [odd[n * (len(odd) - 1) // (MOST_WIDTHS - 2)] for n in range(3)]
        along.append([*dict.fromkeys(few), count])
    return list(itertools.product(*along))


def window_rows(
    grid: TokenGrid, tile: tuple[int, int, int], window: tuple[int, int, int], rows: torch.Tensor
) -> torch.Tensor:
    """Which tokens these query tokens see: bool ``[n, S]``. At an edge the window is moved inside; text sees all."""
    text = grid.is_text(rows.device)
    seen = torch.ones(len(rows), grid.tokens, dtype=torch.bool, device=rows.device)
    positions = torch.zeros(grid.tokens, 3, dtype=torch.long, device=rows.device)
    positions[grid.video_slice] = grid.positions(rows.device)
    for axis, (length, side, width) in enumerate(zip(grid.shape, tile, window, strict=True)):
        count = -(-length // side)
        if width >= count:
            continue
        at, half = positions[:, axis] // side, width // 2
        centre = at[rows].clamp(half, count - 1 - half)
        seen &= (at - centre[:, None]).abs() <= half
    return seen | text | text[rows][:, None]
