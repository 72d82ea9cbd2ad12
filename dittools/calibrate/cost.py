"""What a head costs in this machine's sparse kernel, as a line over density, in dense heads."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from dittools.blocks import BlockMask, Partition
from dittools.kernels import block_sparse_attention, dense_attention
from dittools.orders.token_major import token_major
from dittools.tokens import TokenGrid

DENSITIES = (0.1, 0.3, 0.6)
REPEATS = 3


def kernel_cost(like: torch.Tensor, partition: Partition, grid: TokenGrid) -> dict[str, list[float]]:
    """``{"raster": [fixed, slope], "ordered": [fixed, slope]}``: seconds = (fixed + slope * density) * dense seconds.

    Timed on random q, k and v of one head more than fits a single launch badly: as many as ``like`` has.

    Args:
        like: a tensor ``[.., .., H, D]`` with the model's heads, dtype and device.
        partition: of the positions.
    """
    shape = (1, grid.tokens, *like.shape[2:])
    q, k, v = (torch.randn(shape, device=like.device, dtype=like.dtype) for _ in range(3))
    order = token_major(grid).to(like.device)[None, None]
    dense = _seconds(lambda: dense_attention(q, k, v), like.device)

    def line(order: torch.Tensor | None) -> list[float]:
        points = []
        for density in DENSITIES:
            keep = torch.rand(1, like.shape[2], partition.count, partition.count) < density
            keep[..., 0] = True
            mask = BlockMask(keep.to(like.device), partition, partition)
            mask.lists()
            spent = _seconds(lambda m=mask: block_sparse_attention(q, k, v, m, order=order), like.device)
            points.append((mask.density().mean().item(), spent / dense))
        slope, fixed = statistics.linear_regression(*zip(*points, strict=True))
        return [round(max(fixed, 0.0), 4), round(max(slope, 0.0), 4)]

    return {"raster": line(None), "ordered": line(order)}


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of a few runs after one that does not count."""
    spent = []
    for _ in range(REPEATS + 1):
        _wait(device)
        begun = time.perf_counter()
        run()
        _wait(device)
        spent.append(time.perf_counter() - begun)
    return statistics.median(spent[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
