"""What a head costs in this machine's sparse kernel, as a line over density, in dense heads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from dittools.kernels import block_sparse_attention, dense_attention
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.orders.token_major import token_major
from dittools.tokens import TokenGrid

DENSITIES = (0.1, 0.3, 0.6)
REPEATS = 4


def kernel_cost(like: torch.Tensor, partition: Partition, grid: TokenGrid) -> dict[str, list[float]]:
    """``{"raster": [fixed, slope], "ordered": [fixed, slope]}``: seconds = (fixed + slope * density) * dense seconds.

    Random q, k and v of the model's shape. All settings take turns, and the fastest of a few runs counts: what else
    the machine does only ever adds. An order adds a constant, so both lines share their slope.

    Args:
        like: a tensor ``[.., .., H, D]`` with the model's heads, dtype and device.
        partition: of the positions.
    """
    shape = (1, grid.tokens, *like.shape[2:])
    q, k, v = (torch.randn(shape, device=like.device, dtype=like.dtype) for _ in range(3))
    order = token_major(grid).to(like.device)[None, None]
    masks = []
    for density in DENSITIES:
        keep = torch.rand(1, like.shape[2], partition.count, partition.count) < density
        keep[..., 0] = True
        masks.append(BlockMask(keep.to(like.device), partition, partition))
        masks[-1].kv_blocks()

    runs: dict[tuple, Callable[[], object]] = {("dense",): lambda: dense_attention(q, k, v)}
    for n, mask in enumerate(masks):
        for name, places in (("raster", None), ("ordered", order)):
            runs[name, n] = lambda m=mask, o=places: block_sparse_attention(q, k, v, m, order=o)
    best = _fastest(runs, like.device)
    share = {key: spent / best["dense",] for key, spent in best.items()}
    density = [mask.density().mean().item() for mask in masks]
    slope, fixed = statistics.linear_regression(density, [share["raster", n] for n in range(len(masks))])
    moved = statistics.median(share["ordered", n] - share["raster", n] for n in range(len(masks)))
    fixed, slope, moved = (round(max(value, 0.0), 4) for value in (fixed, slope, moved))
    return {"raster": [fixed, slope], "ordered": [round(fixed + moved, 4), slope]}


def _fastest(runs: dict[tuple, Callable[[], object]], device: torch.device) -> dict[tuple, float]:
    """Seconds of the fastest of a few turns, after one that does not count."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(REPEATS + 1):
        for key, run in runs.items():
            _wait(device)
            begun = time.perf_counter()
            run()
            _wait(device)
            if turn:
                best[key] = min(best[key], time.perf_counter() - begun)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
