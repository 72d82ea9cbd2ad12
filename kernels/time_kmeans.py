"""Check and time k-means, part by part, on this machine: ``python -m dittools.kernels.time_kmeans --json PATH``.

For each number of clusters: the assignment in every variant, the sort and the update of one iteration; "k-means", as
many iterations as asked; and "order", what a method pays for the order of q or k at a later step, from tokens that lie
as a model leaves them. Parts of a call are milliseconds of one iteration. Nothing is timed before sampled points of
that very form have been found with the nearest centroid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dittools.kernels.counting_sort import sort_by_label
from dittools.kernels.kmeans import cluster_runs, nearest_centroids, stratified_start
from dittools.kernels.time_cases import here, in_lines, keep_cases, parser_of, passing, timed
from dittools.orders.clusters import cluster_order
from dittools.tokens import TokenGrid


def check(x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, samples: int = 512) -> float:
    """How much farther than the nearest centroid a sampled point's own is at most, as a share. Raises RuntimeError
    where that is no rounding.

    Args:
        x: ``[B, H, S, D]``. centroids: ``[B * H, C, D]``. labels: ``[B * H, S]``.
    """
    worst = 0.0
    picked = torch.linspace(0, x.shape[2] - 1, samples, device=x.device).long()
    for lane in {0, labels.shape[0] - 1}:
        points = x[lane // x.shape[1], lane % x.shape[1], picked].double()
        distance = torch.cdist(points, centroids[lane].to(x.dtype).double())
        taken = distance.gather(1, labels[lane, picked, None].long())[:, 0]
        worst = max(worst, (taken / distance.amin(1).clamp_min(1e-6) - 1).max().item())
    if not worst < 0.01:
        raise RuntimeError(f"a point's centroid is {worst:.3g} farther than its nearest: not timed")
    return worst


def check_runs(x: torch.Tensor, order: torch.Tensor, means: torch.Tensor, sizes: torch.Tensor) -> float:
    """Worst error of a coordinate of sampled means. Raises RuntimeError where that is no rounding, or where the order
    is no permutation.

    Args:
        x: ``[B, H, S, D]``. order: ``[B, H, S]``. means: ``[B, H, C, D]``. sizes: ``[B, H, C]``.
    """
    worst, tokens = 0.0, x.shape[2]
    if not torch.equal(order.sort(-1).values, torch.arange(tokens, device=x.device).expand_as(order).to(order.dtype)):
        raise RuntimeError("the order is no permutation: not timed")
    if not (sizes.sum(-1) == tokens).all():
        raise RuntimeError(f"the sizes of a lane are not {tokens} in all: not timed")
    stops = sizes.cumsum(-1)
    for b, h, c in {(0, 0, 0), (x.shape[0] - 1, x.shape[1] - 1, means.shape[2] - 1)}:
        size, stop = sizes[b, h, c].item(), stops[b, h, c].item()
        if size:
            mean = x[b, h, order[b, h, stop - size : stop].long()].double().mean(0)
            worst = max(worst, (means[b, h, c].double() - mean).abs().max().item())
    if not worst < 1e-3:
        raise RuntimeError(f"a mean is off by {worst:.3g}: not timed")
    return worst


def case(heads: int, tokens: int, dim: int, clusters: int, iterations: int, repeats: int = 10) -> dict:
    """One number of clusters: milliseconds of each part, and what the checks found."""
    device = here()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    made = torch.Generator(device).manual_seed(1)
    x = torch.randn(1, tokens, heads, dim, generator=made, device=device).to(dtype)
    points, grid = x.transpose(1, 2), TokenGrid(1, 1, tokens)
    start = stratified_start(points, clusters)
    call = {"centroids": start, "iterations": iterations}
    found = cluster_order(x, grid, clusters, start, iterations)
    mean_error = check_runs(points, found.order, found.means, found.partition.run_sizes)
    assignments = _assignments(points, start)
    calls, error, left_out = passing(assignments, lambda _, labels: check(points, start, labels))
    labels = nearest_centroids(points.flatten(0, 1), start)
    calls["sort"] = lambda: sort_by_label(labels, clusters)
    if device.type == "cuda":
        from dittools.kernels.kmeans_triton import triton_update

        runs = sort_by_label(labels, clusters)
        calls["update"] = lambda: triton_update(points, *runs, start)
    alone = points.flatten(0, 1).contiguous()
    calls["k-means"] = lambda: cluster_runs(alone, **call)
    calls["order"] = lambda: cluster_order(x, grid, clusters, start, iterations)
    times = timed(calls, device, repeats)
    shape = {"heads": heads, "tokens": tokens, "dim": dim, "clusters": clusters, "iterations": iterations}
    return {**shape, "error": error, "mean_error": mean_error, "milliseconds": times, "left_out": left_out}


def _assignments(points: torch.Tensor, start: torch.Tensor) -> dict[str, Callable]:
    """The assignment, in each of its variants where Triton runs."""
    if points.device.type != "cuda":
        return {"assign": lambda: nearest_centroids(points.flatten(0, 1), start)}
    from dittools.kernels.kmeans_triton import Variant, triton_assign

    variants = (
        Variant(), Variant(folded=True), Variant(stages=2), Variant(stages=4), Variant(points=256),
        Variant(points=256, folded=True), Variant(points=256, warps=16), Variant(centroids=128),
        Variant(points=64, centroids=128, warps=4), Variant(points=64, warps=4),
    )  # fmt: skip
    calls: dict[str, Callable] = {}
    for v in variants:
        name = f"assign, {v.points} x {v.centroids}, {v.warps} warps, {v.stages} stages{', folded' * v.folded}"
        calls[name] = lambda v=v: triton_assign(points, start, v)
    return calls


def main(arguments: list[str] | None = None) -> None:
    """Time every number of clusters and write the JSON after each."""
    parser = parser_of(__doc__, repeats=10)
    parser.add_argument("--clusters", type=int, nargs="+", default=(300, 1000))
    parser.add_argument("--iterations", type=int, default=2)
    asked = parser.parse_args(arguments)
    shape = asked.heads, asked.tokens, asked.dim
    cases = (partial(case, *shape, clusters, asked.iterations, asked.repeats) for clusters in asked.clusters)
    keep_cases(asked.json, cases, lambda found: in_lines(f"{found['clusters']} clusters", found))


if __name__ == "__main__":
    main()
