"""Batched k-means: every head's tokens clustered at once, with a fixed number of iterations and no host sync.

Exact Lloyd iterations in squared Euclidean distance: the nearest centroid maximises ``x . c - |c|^2 / 2``.
Clustering of queries and keys for sparse attention: SVG2 (Sparse VideoGen2, section 4).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.kernels.capability import why_not_triton_kmeans
from dittools.kernels.choice import picks_triton
from dittools.kernels.counting_sort.dispatch import sort_by_label

# Scores of a chunk of points against all centroids. A CPU wants them in its cache.
CHUNK_BYTES = 256 << 20
CPU_CHUNK_BYTES = 2 << 20


class Clusters(NamedTuple):
    """What k-means found. Labels, sizes and centroids belong together: each centroid is the mean of its points.

    The labels are the nearest among the centroids that the last iteration *began* with; `nearest_centroids`
    gives those under the centroids it ended with.
    """

    labels: torch.Tensor  # int32 [N, S]
    centroids: torch.Tensor  # fp32 [N, C, D]
    sizes: torch.Tensor  # int32 [N, C]


class Runs(NamedTuple):
    """What k-means found, as runs of positions: tokens of one cluster stand together, clusters by number."""

    order: torch.Tensor  # int32 [N, S], position -> token; tokens of a cluster in the order they came in
    centroids: torch.Tensor  # fp32 [N, C, D]
    sizes: torch.Tensor  # int32 [N, C]


def cluster_tokens(
    x: torch.Tensor,
    clusters: int | None = None,
    *,
    centroids: torch.Tensor | None = None,
    iterations: int = 2,
    generator: torch.Generator | None = None,
    implementation: str | None = None,
) -> Clusters:
    """Cluster the points of each lane.

    Args:
        x: ``[N, S, D]``, fp16, bf16 or fp32, any strides; N is batch times heads. Or ``[B, H, S, D]``, of which
            the Triton kernels make no copy whatever its strides; N is B x H in all that is returned.
        clusters: C, between 1 and S; starts from `stratified_start`. Left out with ``centroids``.
        centroids: ``[N, C, D]``, a warm start, as of the step before.
        iterations: assignments with an update each, at least 1. Nothing stops early: to find out whether the
            centroids still move would wait for the device.
        generator: for `stratified_start`.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        `Clusters`. A cluster that lost all its points has size 0 and keeps its centroid, where scikit-learn
        would move it. Of centroids that are equally near, the lowest takes the point. The Triton kernel rounds
        centroids to the dtype of x before it compares them; sums and means are fp32 everywhere.

    Raises:
        ValueError: when shapes do not fit together, not one of clusters and centroids is given, or
            ``implementation`` cannot run.
    """
    how = {"centroids": centroids, "iterations": iterations, "generator": generator, "implementation": implementation}
    labels, _, centroids, sizes = _iterate(x, clusters, **how)
    return Clusters(labels, centroids, sizes)


def cluster_runs(x: torch.Tensor, clusters: int | None = None, **options) -> Runs:
    """`cluster_tokens`, of the same options, and its points brought together: the last update's sort serves again."""
    labels, order, centroids, sizes = _iterate(x, clusters, **options)
    if order is None:
        order, _ = sort_by_label(labels, sizes.shape[1], implementation="portable")
    return Runs(order, centroids, sizes)


def _iterate(
    x, clusters, *, centroids=None, iterations: int = 2, generator=None, implementation=None
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Labels, order, centroids and sizes of the last iteration; no order where the iterations needed none."""
    if x.ndim not in (3, 4):
        raise ValueError(f"x must be [N, S, D] or [B, H, S, D], got {list(x.shape)}")
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, got {iterations}")
    if (clusters is None) == (centroids is None):
        raise ValueError("give either clusters, for a fresh start, or centroids, for a warm one")
    if centroids is None:
        centroids = stratified_start(x, clusters, generator)
    _check_centroids(x, centroids)
    centroids = centroids.float().contiguous()
    if picks_triton(implementation, x, reason=why_not_triton_kmeans(x, centroids.shape[1])):
        return _triton_iterations(x, centroids, iterations)
    x = x if x.ndim == 3 else x.flatten(0, 1)
    for _ in range(iterations):
        labels, centroids, sizes = _portable_step(x, centroids)
    return labels, None, centroids, sizes


def nearest_centroids(x: torch.Tensor, centroids: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """The nearest centroid of each point: x ``[N, S, D]`` or ``[B, H, S, D]``, centroids ``[N, C, D]``, N is B x H.

    Returns int32 ``[N, S]``. Ties, precision, ``implementation`` and errors: as in `cluster_tokens`.
    """
    _check_centroids(x, centroids)
    centroids = centroids.float().contiguous()
    if picks_triton(implementation, x, reason=why_not_triton_kmeans(x, centroids.shape[1])):
        from dittools.kernels.kmeans.triton import triton_assign

        return triton_assign(x, centroids)
    x = x if x.ndim == 3 else x.flatten(0, 1)
    labels = torch.empty(x.shape[:2], dtype=torch.int32, device=x.device)
    for lanes, points in _chunks(x, centroids.shape[1]):
        labels[lanes, points] = _nearest(x[lanes, points].float(), centroids[lanes])
    return labels


def stratified_start(x: torch.Tensor, clusters: int, generator: torch.Generator | None = None) -> torch.Tensor:
    """Centroids to start from: one point out of each of C equal stretches of the sequence.

    Neighbours in a video's token order are alike, so that stretches spread the start better than points drawn
    at random do, and cost nothing.

    Args:
        x: ``[N, S, D]`` or ``[B, H, S, D]``.
        clusters: C, between 1 and S.
        generator: draws the point of each stretch, the same for all N; the middle one without. On the
            generator's device, so that a seed means the same everywhere.

    Returns:
        fp32 ``[N, C, D]``.

    Raises:
        ValueError: when clusters is not between 1 and S.
    """
    points = x.shape[-2]
    if not 1 <= clusters <= points:
        raise ValueError(f"clusters must be between 1 and the {points} points, got {clusters}")
    edges = torch.arange(clusters + 1) * points // clusters
    low, sizes = edges[:-1], edges.diff()
    if generator is None:
        picked = low + sizes // 2
    else:
        share = torch.rand(clusters, generator=generator, device=generator.device, dtype=torch.float64)
        picked = low.to(share.device) + (share * sizes.to(share.device)).long()
    return x.index_select(-2, picked.to(x.device)).float().flatten(0, -3)


def _portable_step(x: torch.Tensor, centroids: torch.Tensor) -> Clusters:
    """One iteration. Assignment and sums share the chunks, so that each point is read and widened once."""
    lanes, points, dim = x.shape
    clusters = centroids.shape[1]
    labels = torch.empty(lanes, points, dtype=torch.int32, device=x.device)
    sums = torch.zeros(lanes * clusters, dim, device=x.device)
    sizes = torch.zeros(lanes * clusters, dtype=torch.int32, device=x.device)
    one = torch.ones((), dtype=torch.int32, device=x.device)
    first = torch.arange(lanes, device=x.device)[:, None] * clusters
    for some, part in _chunks(x, clusters):
        chunk = x[some, part].float()  # [n, s, D]
        nearest = _nearest(chunk, centroids[some])  # [n, s]
        labels[some, part] = nearest
        slots = (first[some] + nearest).flatten()
        sums.index_add_(0, slots, chunk.reshape(-1, dim))
        sizes.index_add_(0, slots, one.expand(slots.shape))
    sizes = sizes.view(lanes, clusters)
    means = sums.view(centroids.shape) / sizes.clamp_min(1)[..., None]
    return Clusters(labels, torch.where(sizes[..., None] > 0, means, centroids), sizes)


def _triton_iterations(x: torch.Tensor, centroids: torch.Tensor, iterations: int) -> tuple[torch.Tensor, ...]:
    from dittools.kernels.kmeans.triton import triton_assign
    from dittools.kernels.kmeans.update_triton import triton_update

    for _ in range(iterations):
        labels = triton_assign(x, centroids)
        order, offsets = sort_by_label(labels, centroids.shape[1], implementation="triton")
        centroids = triton_update(x, labels, order, offsets, centroids)
    return labels, order, centroids, offsets.diff(dim=-1)


def _nearest(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Label of each point, fp32 ``[n, s, D]`` against fp32 ``[n, C, D]``: int64 ``[n, s]``."""
    half_norms = centroids.square().sum(-1) / 2  # [n, C]
    return torch.baddbmm(half_norms[:, None], x, centroids.transpose(1, 2), beta=-1).argmax(-1)


def _chunks(x: torch.Tensor, clusters: int):
    """(lanes, points) slices of x whose scores against the centroids stay small."""
    lanes, points, dim = x.shape
    budget = CPU_CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES
    rows = max(1, budget // (4 * (clusters + dim)))
    if rows >= points:
        step = rows // points
        yield from ((slice(i, i + step), slice(None)) for i in range(0, lanes, step))
    else:
        for lane in range(lanes):
            yield from ((slice(lane, lane + 1), slice(i, i + rows)) for i in range(0, points, rows))


def _check_centroids(x: torch.Tensor, centroids: torch.Tensor) -> None:
    lanes, dim = x.shape[:-2].numel(), x.shape[-1]
    fits = centroids.ndim == 3 and centroids.shape[0] == lanes and centroids.shape[2] == dim
    if not fits or centroids.shape[1] < 1:
        raise ValueError(f"centroids must be [{lanes}, C, {dim}], got {list(centroids.shape)}")
    if centroids.device != x.device:
        raise ValueError(f"centroids are on {centroids.device}, but x is on {x.device}")
