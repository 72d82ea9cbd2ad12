"""Clusters of alike tokens as runs of positions: an order for each head, made from the tokens themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from dittools.kernels.kmeans.dispatch import cluster_runs
from dittools.kernels.masks.cluster_mask import ClusterPartition
from dittools.selection.areas import area_segments
from dittools.tokens import TokenGrid

# Clusters move along where the mean of all tokens moved by more than this share of the mean squared distance of
# clusters from it. Less than that leaves tokens with the clusters that they were with; more of it, and the clusters
# that lie behind lose all their tokens to those in front.
FAR = 0.5


class Start(NamedTuple):
    """Where the clusters of one step stood, for the next to start from."""

    centroids: torch.Tensor  # fp32 [B * H, C, D]
    centre: torch.Tensor  # fp32 [B * H, 1, D], mean of all tokens
    spread: torch.Tensor  # fp32 [B * H, 1, 1], mean squared distance of clusters from it, by their tokens

    @classmethod
    def of(cls, centroids: torch.Tensor, sizes: torch.Tensor, tokens: int) -> Start:
        """From the clusters of all tokens; sizes int32 ``[B * H, C]``."""
        share = sizes[:, None].float() / tokens  # [B * H, 1, C]
        centre = share @ centroids
        return cls(centroids, centre, share @ (centroids - centre).square().sum(-1, keepdim=True))

    def at(self, points: torch.Tensor) -> torch.Tensor:
        """The centroids, moved along with the mean of points ``[B, H, tokens, D]`` where that went far.

        A vector added to all keys changes no attention: it may not change which of them are together either.
        """
        moved = points.mean(2, dtype=torch.float32).flatten(0, 1)[:, None] - self.centre  # [B * H, 1, D]
        far = moved.square().sum(-1, keepdim=True)  # [B * H, 1, 1]
        return torch.where((far > FAR * self.spread) & far.isfinite(), self.centroids + moved, self.centroids)


class Clustered(NamedTuple):
    """One side of attention in clusters. Each area of a sequence is clustered by itself and keeps its place; text,
    where there is some, is a cluster of its own at its place.
    """

    order: torch.Tensor  # int32 [B, H, S], position -> token
    partition: ClusterPartition  # of positions
    means: torch.Tensor  # fp32 [B, H, M, D]; of an empty cluster, what it was when it last had tokens
    text: torch.Tensor | None  # bool [M], which cluster is text; None without any
    areas: tuple[slice, ...]  # clusters of the picture, then of each other area
    starts: tuple[Start, ...]  # of each area in the next step


def cluster_order(
    x: torch.Tensor,
    grid: TokenGrid,
    counts: Sequence[int],
    before: Sequence[Start] | None,
    iterations: int,
    generator: torch.Generator | None = None,
) -> Clustered:
    """Cluster the tokens of every head, area by area, and bring clusters together. Nothing waits for the device.

    Args:
        x: queries or keys, ``[B, S, H, D]``.
        grid: layout of the S tokens.
        counts: clusters of each area (`dittools.selection.areas.area_segments`), at most as many as it has tokens.
        before: where the clusters of each area stood in the step before; None starts from tokens spread over the area.
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
            start = fresh if before is None else {"centroids": before[number].at(points)}
            order, mean, size = cluster_runs(points, iterations=iterations, **start)
            found.append(Start.of(mean, size, at.stop - at.start))
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
    for number, (_, at) in enumerate(area_segments(grid)):
        if at.start > end:
            found.append((None, slice(end, at.start)))
        found.append((number, at))
        end = at.stop
    return found if end == grid.tokens else [*found, (None, slice(end, grid.tokens))]
