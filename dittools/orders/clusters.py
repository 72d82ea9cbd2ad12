"""Clusters of alike tokens as runs of positions: an order for each head, made from the tokens themselves."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.clusters import ClusterPartition
from dittools.kernels.kmeans import cluster_runs
from dittools.tokens import TokenGrid


class Clustered(NamedTuple):
    """One side of attention in clusters. Text, where there is some, is a cluster of its own at its end of the order."""

    order: torch.Tensor  # int32 [B, H, S], position -> token
    partition: ClusterPartition  # of positions
    means: torch.Tensor  # fp32 [B, H, M, D]; of an empty cluster, what it was when it last had tokens
    text: torch.Tensor | None  # bool [M], which cluster is text; None without any
    centroids: torch.Tensor  # fp32 [B * H, C, D] of video tokens, to start from in the next step


def cluster_order(
    x: torch.Tensor,
    grid: TokenGrid,
    count: int,
    centroids: torch.Tensor | None,
    iterations: int,
    generator: torch.Generator | None = None,
) -> Clustered:
    """Cluster the video tokens of every head and bring clusters together. Nothing waits for the device.

    Args:
        x: queries or keys, ``[B, S, H, D]``.
        grid: layout of the S tokens.
        count: clusters of video tokens, at most as many as there are tokens.
        centroids: those of the step before; None starts from tokens spread over the sequence.
        iterations: of k-means.
        generator: draws the fresh start.
    """
    batches, _, heads, _ = x.shape
    points = x[:, grid.video_slice].transpose(1, 2)  # [B, H, video, D], no copy
    start = {"centroids": centroids} if centroids is not None else {"clusters": count, "generator": generator}
    order, means, sizes = cluster_runs(points, iterations=iterations, **start)
    if grid.video_start:
        order = order + grid.video_start
    order, sizes, video = (y.unflatten(0, (batches, heads)) for y in (order, sizes, means))
    if not grid.text:
        return Clustered(order, ClusterPartition(grid.tokens, sizes), video, None, means)
    at = grid.text_slice
    text = torch.arange(at.start, at.stop, dtype=torch.int32, device=x.device).expand(batches, heads, -1)
    parts = [
        (text, order),
        (torch.full_like(sizes[..., :1], grid.text), sizes),
        (x[:, at].float().mean(1)[:, :, None], video),
    ]
    is_text = torch.arange(count + 1, device=x.device) == (0 if grid.text_position == "first" else count)
    first = 1 if grid.text_position == "first" else -1
    order, sizes, joined = (torch.cat(pair[::first], axis) for pair, axis in zip(parts, (2, 2, 2), strict=True))
    return Clustered(order, ClusterPartition(grid.tokens, sizes), joined, is_text, means)
