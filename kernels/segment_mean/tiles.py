"""Runs of positions cut into tiles of one size: a flat list, so that a kernel walks runs of any size in one loop."""

from __future__ import annotations

from typing import NamedTuple

import torch


class RunTiles(NamedTuple):
    """Tiles of every lane, those of a run next to each other, and runs in their order."""

    # int32 [B or 1, H or 1, T, 4]: first position, end, run, and which tile is the first of that run. Tiles past the
    # count are empty.
    table: torch.Tensor
    counts: torch.Tensor  # int32 [B or 1, H or 1], tiles of a lane


def cut_runs(offsets: torch.Tensor, length: int, size: int) -> RunTiles:
    """Cut runs into tiles of at most ``size`` positions. Nothing waits for the device; empty runs have no tile.

    Args:
        offsets: int32 ``[B or 1, H or 1, N + 1]``, where runs begin and end; at most ``length``.
        length: positions, known to the host. There are at most ``N + length // size`` tiles.
        size: positions of a tile.
    """
    number = (offsets.diff(dim=-1) + (size - 1)) // size  # [.., N]
    ends = number.cumsum(-1, dtype=torch.int32)
    runs = number.shape[-1]
    tiles = torch.arange(runs + length // size, dtype=torch.int32, device=offsets.device)
    tiles = tiles.expand(*offsets.shape[:2], -1).contiguous()
    run = torch.searchsorted(ends, tiles, right=True)
    void, run = run >= runs, run.clamp_max(runs - 1)
    earliest = (ends - number).gather(-1, run)
    start = offsets.gather(-1, run) + (tiles - earliest) * size
    stop = torch.minimum(start + size, offsets.gather(-1, run + 1))
    table = torch.stack((start, stop, run.int(), earliest), -1)
    return RunTiles(table.masked_fill_(void[..., None], 0), ends[..., -1].contiguous())


def splits(tiles: int, runs: int) -> int:
    """In how many parts a walk over all runs is cut, so that the programs of a launch keep a large card busy.

    Args:
        tiles: programs of one part.
        runs: that there are; no part has less than 8 of them on average.
    """
    return max(1, min(32, 1600 // max(1, tiles), runs // 8))
