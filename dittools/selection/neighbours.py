"""Blocks that are near in the picture: how much two blocks touch, in any order."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from dittools.selection.areas import area_pairs
from dittools.selection.budget import select_topk_blocks
from dittools.selection.ordered_blocks import OrderedBlocks
from dittools.tokens import TokenGrid

# A local part may take this share of the budget; the rest goes where the scores say.
MOST = 0.5


def touching() -> list[tuple[int, int, int]]:
    """Steps to the 26 neighbours of a token, and to itself."""
    return [(f, h, w) for f in (-1, 0, 1) for h in (-1, 0, 1) for w in (-1, 0, 1)]


def window(tile: tuple[int, int, int], extent: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Steps to the same place in every tile of a window, ``extent`` tiles wide (odd) along each axis."""
    reach = [range(-(n // 2), n // 2 + 1) for n in extent]
    return [(f * tile[0], h * tile[1], w * tile[2]) for f in reach[0] for h in reach[1] for w in reach[2]]


def contact(grid: TokenGrid, blocks: OrderedBlocks, steps: Iterable[tuple[int, int, int]]) -> torch.Tensor:
    """How many tokens of one block reach the other by one of the steps, far steps counting less.

    Args:
        grid: layout of the tokens.
        blocks: M of them, in their order.
        steps: (frames, rows, columns) each. What leaves the picture reaches nothing: windows shrink at its edges.
            A reference has neighbours of its own, in it alone.

    Returns:
        fp64 ``[M, M]`` on the CPU, 0 for blocks that do not touch.
    """
    count = blocks.partition.count
    # Once a run, and on its GPU: at 720p a window of 99 tiles takes a CPU most of a second.
    device = blocks.force.device if blocks.force.is_cuda else torch.device("cpu")
    found = torch.zeros(count * count, dtype=torch.float64, device=device)
    steps = list(steps)
    for part, at in grid.grids:
        block = blocks.block_of_token[at].view(part.shape).to(device)
        for step in steps:
            here, there = [], []
            for size, by in zip(part.shape, step, strict=True):
                here.append(slice(max(0, -by), max(0, min(size, size - by))))
                there.append(slice(max(0, by), max(0, min(size, size + by))))
            pairs = (block[tuple(here)] * count + block[tuple(there)]).flatten()
            found += pairs.bincount(minlength=count * count).double() / (1 + sum(map(abs, step)))
    return found.view(count, count).cpu()


def same_frame(grid: TokenGrid, blocks: OrderedBlocks, frame: int) -> torch.Tensor:
    """Which blocks both hold tokens of one frame: bool ``[M, M]`` on the CPU."""
    holds = torch.zeros(blocks.partition.count, dtype=torch.bool)
    holds[blocks.block_of_token[grid.video_slice][frame * grid.frame : (frame + 1) * grid.frame]] = True
    return holds[:, None] & holds


def affordable(nearness: torch.Tensor, blocks: OrderedBlocks, density: float) -> tuple[torch.Tensor, tuple[str, ...]]:
    """The local part of a mask, for as much of it as half the budget pays: nearest first, row by row.

    Args:
        nearness: ``[M, M]`` on the CPU, from `contact`.
        blocks: M of them. Text and diagonal always belong.
        density: share of pairs that the whole mask keeps.

    Returns:
        bool ``[1, 1, M, M]`` on the blocks' device, and a note when the budget cut it. Each kind of pair has its own.
    """
    near = (nearness > 0)[None, None] | blocks.force_on_cpu
    over = 0.0
    for pair in area_pairs(blocks.areas):
        part = near[(..., *pair.place)]
        share = float(pair.weight[part[0, 0].numpy()].sum() / pair.weight.sum())
        if density == 1 or share <= MOST * pair.density(density):
            continue
        over = max(over, share)
        sizes = (area.sizes(nearness.device) for area in pair)
        force = blocks.force_on_cpu[(..., *pair.place)]
        kept = select_topk_blocks(
            nearness[pair.place][None, None].float(), *sizes, MOST * pair.density(density), force=force
        )
        near[(..., *pair.place)] = kept & part
    if not over:
        return near.to(blocks.force.device), ()
    note = (
        f"near blocks hold {over:.2f} of the pairs, more than half of the budget of {density:.2f}: "
        "the nearest are always kept"
    )
    return near.to(blocks.force.device), (note,)
