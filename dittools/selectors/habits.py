"""The five habits of heads that Sparse-vDiT names, as masks, and what each costs on a card.

Source: arXiv 2506.03065, section 3.2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from dittools.blocks import Partition
from dittools.orders.raster import raster
from dittools.orders.token_major import token_major
from dittools.profile import Profile
from dittools.selectors.geometric import Band, forced
from dittools.selectors.stripes import stripes
from dittools.tokens import TokenGrid

MODES = ("full", "skip", "diagonal", "multi_diagonal", "stripe")
WIDTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)


class Habit(NamedTuple):
    """A mode and the share of pairs it keeps; 1 for "full", 0 for "skip"."""

    mode: str
    width: float


HABITS = (Habit("full", 1.0), Habit("skip", 0.0), *(Habit(mode, w) for mode in MODES[2:] for w in WIDTHS))
"""What is measured of every head."""


def habit_order(grid: TokenGrid, habit: Habit) -> torch.Tensor:
    """Position -> token: int32 ``[S]``. The multi-diagonal is a band once the frames of a patch lie side by side."""
    return token_major(grid) if habit.mode == "multi_diagonal" else raster(grid)


@lru_cache(maxsize=2)
def _band(grid: TokenGrid, mode: str, block_size: int) -> Band:
    """Bands of a mode in every width: the sort of all block pairs that they share is what they cost."""
    order, index = habit_order(grid, Habit(mode, 1.0)), torch.arange(grid.video)
    near = index % grid.frame if mode == "multi_diagonal" else index
    return Band(grid, order, near, block_size, forced(grid, order, block_size))


def habit_mask(grid: TokenGrid, partition: Partition, habit: Habit, columns: torch.Tensor) -> torch.Tensor:
    """Kept blocks in the habit's order: bool ``[M, M]`` on the CPU.

    Text attends to everything and is attended to by all, except that a skipped head keeps nothing but blocks of text
    alone: its output is zero for all of the video, and what text shares a block with it is computed beside the mask
    (`text_among_video`). ``columns``: what each key block is worth to this head, ``[M]``.
    """
    if habit.mode == "full":
        return torch.ones(partition.count, partition.count, dtype=torch.bool)
    if habit.mode == "skip":
        keep = torch.ones(partition.count, partition.count, dtype=torch.bool)
        keep[_holds_video(grid, partition)] = False
        return keep
    if habit.mode == "stripe":
        return stripes(grid, partition, columns, habit.width)
    return torch.from_numpy(_band(grid, habit.mode, partition.size).keep(habit.width))


def text_among_video(grid: TokenGrid, partition: Partition) -> torch.Tensor:
    """Tokens that stay dense in blocks of the raster order that hold others too: int64 ``[r]`` on the CPU."""
    shared = torch.zeros(partition.count, dtype=torch.bool)
    shared[_holds_video(grid, partition)] = True
    token = torch.arange(grid.tokens)
    return token[grid.stays_dense() & shared[token // partition.size]]


def _holds_video(grid: TokenGrid, partition: Partition) -> torch.Tensor:
    """Blocks of the raster order with tokens that do not stay dense: int64 ``[n]``."""
    return (torch.arange(grid.tokens)[~grid.stays_dense()] // partition.size).unique()


def from_section(profile: Profile, method: str) -> tuple[list[Habit], int]:
    """The habits that a profile measured, and its block size. Raises ValueError when they are none."""
    section = profile.methods[method]
    try:
        habits = [Habit(str(mode), float(width)) for mode, width in section["habits"]]
        good = all(h.mode in MODES and 0 <= h.width <= 1 for h in habits) and section["block_size"] in (16, 32, 64, 128)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good or not {"full", "skip"} <= {h.mode for h in habits}:
        raise ValueError(f"{profile.name} is damaged: method {method} needs habits and a block size; make it again")
    return habits, section["block_size"]


def head_costs(profile: Profile, habits: list[Habit], density: torch.Tensor) -> torch.Tensor:
    """Seconds of a head in each habit, in dense heads, from the profile's measured line: ``[C]``.

    A skipped head costs nothing; a full one runs dense only if all do, so it pays the sparse kernel's price.
    """
    cost = profile.methods["sparse_vdit"].get("cost") or {}
    line = {name: cost.get(name, [0.0, 1.0]) for name in ("raster", "ordered")}
    if not all(isinstance(v, list) and len(v) == 2 and all(type(x) in (int, float) for x in v) for v in line.values()):
        raise ValueError(f"{profile.name} is damaged: its costs must be [fixed, slope]; make it again")
    values = []
    for habit, share in zip(habits, density.tolist(), strict=True):
        fixed, slope = line["ordered" if habit.mode == "multi_diagonal" else "raster"]
        values.append(0.0 if habit.mode == "skip" else fixed + slope * share)
    return torch.tensor(values, dtype=torch.float64)
