"""What a window can gain before anything is run: tiles that a tiled kernel visits, and blocks that ours does.

Source: the simulator of Generalized Neighborhood Attention (arXiv 2504.16922, appendix B): keys are cut into tiles at
fixed places, a query tile visits every key tile that any of its windows touches, and the gain cannot be more than all
tiles over visited ones. Counted here over query tiles of every dilation group, with padding paid for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import numpy as np

from dittools.methods.gna import AUTO, GNA
from dittools.orders.tiles import fit_tile
from dittools.selection.windows import Axes, fitted, sees, window_starts
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class Simulation:
    """Bounds on the gain of a window on a grid. Speed-ups are over dense attention without padding.

    Attributes:
        window, stride, dilation: as cut down to the grid.
        tile, key_tile: frames, rows and columns of a query tile and of a key tile.
        token_density: share of token pairs in a window; ``flop_speedup`` is one over it.
        padding: tokens added so that query tiles fill the grid, as a share of its tokens.
        tiles: key tiles there are.
        visited_mean, visited_worst: key tiles that a query tile visits.
        speedup_mean, speedup_worst: the bound when query tiles share the work, and when the slowest sets the pace.
        block_size, block_density: what dittools computes with blocks of that many positions in the order of ``tile``,
            which is not padded; ``block_speedup`` is one over it.
    """

    grid: Axes
    window: Axes
    stride: Axes
    dilation: Axes
    tile: Axes
    key_tile: Axes
    token_density: float
    flop_speedup: float
    padding: float
    tiles: int
    visited_mean: float
    visited_worst: int
    speedup_mean: float
    speedup_worst: float
    block_size: int
    block_density: float
    block_speedup: float


def simulate(grid: TokenGrid, method: GNA, block_size: int = 128, key_tile: Axes | None = None) -> Simulation:
    """The bounds for one window.

    Args:
        grid: without text.
        method: a window with its stride, dilation and tile; the tile that suits the block size where it has none.
        block_size: positions in a block of dittools' own mask.
        key_tile: like the query tile by default.

    Raises:
        ValueError: when the method has no window of its own.
    """
    if method.window == AUTO:
        raise ValueError("a simulation needs a window: give gna one")
    tile = fit_tile(grid, block_size) if method.tile == AUTO else method.tile
    key_tile = tile if key_tile is None else key_tile
    stride = (1, 1, 1) if method.stride == AUTO else method.stride
    window, stride, dilation = fitted(grid.shape, method.window, stride, method.dilation)
    cases = list(zip(grid.shape, window, stride, dilation, strict=True))
    visits = [tiles_visited(*case, t, k) for case, t, k in zip(cases, tile, key_tile, strict=True)]
    tokens = prod(float(sees(*case).mean()) for case in cases)
    mean, worst = prod(float(np.mean(v)) for v, _ in visits), prod(max(v) for v, _ in visits)
    queries = prod(len(v) for v, _ in visits) * prod(tile)  # with padding
    blocks = replace(method, tile=tile).pattern(grid, 0.0, block_size).mask.density().item()
    return Simulation(
        grid=grid.shape,
        window=window,
        stride=stride,
        dilation=dilation,
        tile=tile,
        key_tile=key_tile,
        token_density=tokens,
        flop_speedup=1 / tokens,
        padding=queries / grid.video - 1,
        tiles=prod(tiles for _, tiles in visits),
        visited_mean=mean,
        visited_worst=worst,
        speedup_mean=grid.video**2 / (queries * mean * prod(key_tile)),
        speedup_worst=grid.video**2 / (queries * worst * prod(key_tile)),
        block_size=block_size,
        block_density=blocks,
        block_speedup=1 / blocks,
    )


def tiles_visited(
    length: int, window: int, stride: int, dilation: int, tile: int, key_tile: int
) -> tuple[list[int], int]:
    """Along one axis: key tiles that each query tile visits, and how many key tiles there are.

    Positions of one remainder by the dilation are tiled by themselves.
    """
    visited, tiles = [], 0
    for group in range(dilation):
        size = len(range(group, length, dilation))
        start = window_starts(size, window, stride)
        first = start[::tile]
        last = start[np.minimum(np.arange(tile - 1, size + tile - 1, tile), size - 1)] + window - 1
        visited += (last // key_tile - first // key_tile + 1).tolist()
        tiles += -(-size // key_tile)
    return visited, tiles
