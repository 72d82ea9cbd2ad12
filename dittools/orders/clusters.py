"""Clusters of alike tokens as runs of positions: an order for each head, made from the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dittools.clusters import ClusterPartition
from dittools.kernels.kmeans import cluster_runs
from dittools.selectors.areas import runs_of
from dittools.tokens import TokenGrid


class Clustered(NamedTuple):
    """One side of attention in clusters. Each area of a sequence is clustered by itself and keeps its place; text,
    where there is some, is a cluster of its own at its place.
    """

    order: torch.Tensor  # int32 [B, H, S], position -> token
    partition: ClusterPartition  # of positions
    means: torch.Tensor  # fp32 [B, H, M, D]; of an empty cluster, what it was when it last had tokens
    text: torch.Tensor | None  # bool [M], which cluster is text; None without any
    areas: tuple[slice, ...]  # clusters of the picture, then of each other area
    centroids: tuple[torch.Tensor, ...]  # of each area, fp32 [B * H, C, D], to start from in the next step


def cluster_order(
    x: torch.Tensor,
    grid: TokenGrid,
    counts: Sequence[int],
    centroids: Sequence[torch.Tensor] | None,
    iterations: int,
    generator: torch.Generator | None = None,
) -> Clustered:
    """Cluster the tokens of every head, area by area, and bring clusters together. Nothing waits for the device.

    Args:
        x: queries or keys, ``[B, S, H, D]``.
        grid: layout of the S tokens.
        counts: clusters of each area (`dittools.selectors.areas.runs_of`), at most as many as it has tokens.
        centroids: those of the step before; None starts from tokens spread over the area.
        iterations: of k-means.
        generator: draws the fresh start.
    """
    lanes = x.shape[0], x.shape[2]
    orders, sizes, means, found, areas, dense = [], [], [], [], [], []
    first = 0
    for number, at in _stretches(grid):
        if number is None:  # text
            dense.append(first)
            orders.append(torch.arange(at.start, at.stop, dtype=torch.int32, device=x.device).expand(*lanes, -1))
            means.append(x[:, at].float().mean(1)[:, :, None])
            sizes.append(torch.full((*lanes, 1), at.stop - at.start, dtype=torch.int32, device=x.device))
        else:
            points = x[:, at].transpose(1, 2)  # [B, H, tokens, D], no copy
            fresh = {"clusters": counts[number], "generator": generator}
            start = fresh if centroids is None else {"centroids": centroids[number]}
            order, mean, size = cluster_runs(points, iterations=iterations, **start)
            found.append(mean)
            areas.append(slice(first, first + mean.shape[-2]))
            order = order + at.start if at.start else order
            for parts, part in ((orders, order), (means, mean), (sizes, size)):
                parts.append(part.unflatten(0, lanes))
        first += means[-1].shape[2]
    order, mean, size = (parts[0] if len(parts) == 1 else torch.cat(parts, 2) for parts in (orders, means, sizes))
    text = None
    if dense:
        every = torch.arange(first, device=x.device)
        text = torch.stack([every == one for one in dense]).any(0) if len(dense) > 1 else every == dense[0]
    return Clustered(order, ClusterPartition(grid.tokens, size), mean, text, tuple(areas), tuple(found))


def _stretches(grid: TokenGrid) -> list[tuple[int | None, slice]]:
    """Tokens of each area with its number, and between them what stays dense, with None; in their order."""
    found, end = [], 0
    for number, (_, at) in enumerate(runs_of(grid)):
        if at.start > end:
            found.append((None, slice(end, at.start)))
        found.append((number, at))
        end = at.stop
    return found if end == grid.tokens else [*found, (None, slice(end, grid.tokens))]
