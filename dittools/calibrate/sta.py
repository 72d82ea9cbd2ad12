"""Sliding Tile Attention's search: the error of every window of tiles, by group of steps, layer and head.

Source: arXiv 2502.04507, section 4.2 and its mask search.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch

from dittools.calibrate.base import RowCalibrator, Size, fill_groups
from dittools.calibrate.key_groups import KeyGroups, errors_by_group
from dittools.observer import AttentionEvent
from dittools.tokens import TokenGrid

GROUPS = 4
TILES = {16: (1, 4, 4), 32: (2, 4, 4), 64: (4, 4, 4), 128: (2, 8, 8)}
"""Frames, rows and columns of a tile, by block size: a tile is a block."""
MOST_WIDTHS = 4

Axes = tuple[int, int, int]


class STA(RowCalibrator):
    method, by_step, sampled_steps = "sta", True, 8

    def __init__(self, size: Size):
        super().__init__(size)
        self.tile = TILES[size.block_size]
        self.groups = [step * GROUPS // size.steps for step in range(size.steps)]
        self.search: Windows | None = None
        self.error: torch.Tensor | None = None
        self.count = torch.zeros(GROUPS, size.layers)

    def prepare(self, event: AttentionEvent) -> None:
        self.search = Windows(event.grid, self.tile, windows(event.grid, self.tile), event.q.device)
        if self.error is None:
            lanes = (GROUPS, self.size.layers, self.size.heads, len(self.search.windows))
            self.error = torch.zeros(lanes, dtype=torch.float64, device=event.q.device)

    def look(self, event: AttentionEvent, rows: torch.Tensor, round: int) -> None:
        found = errors_by_group(event, rows, self.search.keys, self.search.kept(rows))  # [C, B, H]
        group = self.groups[event.step_info.step]
        self.error[group, event.layer] += found.sum(1).T
        self.count[group, event.layer] += event.q.shape[0]

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        section = self.section(
            groups=self.groups,
            tile=list(self.tile),
            windows=[list(window) for window in self.search.windows],
            density=[round(share, 4) for share in self.search.density()],
        )
        error = self.error.cpu() / self.count.clamp_min(1)[..., None, None]
        return section, {"error": fill_groups(error, self.count > 0).float()}


def windows(grid: TokenGrid, tile: Axes) -> list[Axes]:
    """Windows in tiles along (frames, rows, columns): odd widths up to the whole axis, at most four an axis."""
    along = []
    for axis, side in zip(grid.shape, tile, strict=True):
        count = -(-axis // side)
        odd = list(range(1, count, 2))
        few = odd if len(odd) < MOST_WIDTHS else [odd[n * (len(odd) - 1) // (MOST_WIDTHS - 2)] for n in range(3)]
        along.append([*dict.fromkeys(few), count])
    return list(itertools.product(*along))


class Windows:
    """Which tiles a query sees in each of several windows. At an edge a window is moved inside; text sees all.

    Args:
        windows: widths in tiles along (frames, rows, columns), odd, or the whole axis.

    Attributes:
        keys: a group for each tile, and text behind them.
    """

    def __init__(self, grid: TokenGrid, tile: Axes, windows: list[Axes], device: torch.device | str):
        self.grid, self.windows = grid, windows
        count = torch.tensor([-(-length // side) for length, side in zip(grid.shape, tile, strict=True)])
        at = grid.positions() // torch.tensor(tile)  # [video, 3]
        number = (at[:, 0] * count[1] + at[:, 1]) * count[2] + at[:, 2]
        self.keys = KeyGroups.of_video(number, grid, device)
        of_group = torch.zeros(len(self.keys.tokens), 3, dtype=torch.long)
        of_group[number] = at
        width = torch.tensor(windows)  # [C, 3]
        whole = width >= count
        half = width // 2
        self._at = of_group.to(device)
        self._reach = torch.where(whole, count, half).to(device)
        self._first = torch.where(whole, 0, half).to(device)
        self._last = torch.where(whole, count - 1, count - 1 - half).to(device)

    def kept(self, rows: torch.Tensor) -> torch.Tensor:
        """Groups that these query tokens see in each window: bool ``[C, n, G]``."""
        own = self.keys.of_token[rows]
        text = self.keys.text
        seen = (text | text[own][:, None])[None]  # [1, n, G]
        inside = torch.ones_like(seen)
        for axis in range(3):
            first, last, reach = (x[:, axis, None] for x in (self._first, self._last, self._reach))  # [C, 1]
            centre = torch.minimum(torch.maximum(self._at[own, axis], first), last)  # [C, n]
            inside = inside & ((self._at[:, axis] - centre[..., None]).abs() <= reach[..., None])
        return seen | inside

    def density(self) -> list[float]:
        """Share of the pairs in each window, over a sample of the queries."""
        rows = torch.arange(self.grid.tokens, device=self.keys.of_token.device)[:: max(1, self.grid.tokens // 256)]
        seen = self.kept(rows).double() @ self.keys.sizes.double()  # [C, n], keys
        return (seen.mean(1) / self.grid.tokens).tolist()
