"""Check and time k-means, part by part, on this machine: ``python -m dittools.benchmarks.time_kmeans --json PATH``.

For each number of clusters: the assignment, the sort and the update of one iteration, each in every variant, the one
that runs by itself first; "k-means", as many iterations as asked; and "order", what a method pays for the order of q or
k at a later step, from tokens that lie as a model leaves them. Parts of a call are milliseconds of one iteration.

Nothing is timed before its result was checked: sampled points have the nearest centroid, the order is the stable sort
of the labels, and means of the first and the last lane are those of their points.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from dittools.benchmarks.time_cases import here, in_lines, keep_cases, parser_of, passing, timed
from dittools.kernels.counting_sort.dispatch import sort_by_label
from dittools.kernels.kmeans.dispatch import cluster_runs, nearest_centroids, stratified_start
from dittools.orders.clusters import Start, cluster_order
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


def check_order(labels: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor) -> float:
    """Raises RuntimeError unless the order ``[N, S]`` is the stable sort of labels ``[N, S]``, and runs begin where
    offsets ``[N, C + 1]`` say.
    """
    ordered, want = labels.sort(dim=-1, stable=True)
    if not torch.equal(order.long(), want):
        raise RuntimeError("the order is not the stable sort of the labels: not timed")
    places = torch.arange(offsets.shape[1], device=labels.device, dtype=labels.dtype).expand(offsets.shape)
    if not torch.equal(offsets.long(), torch.searchsorted(ordered, places.contiguous())):
        raise RuntimeError("runs do not begin where the offsets say: not timed")
    return 0.0


def check_means(x: torch.Tensor, labels: torch.Tensor, means: torch.Tensor) -> float:
    """Worst error of a coordinate of the means of the first and the last lane. Raises RuntimeError where that is no
    rounding.

    Args:
        x: ``[B, H, S, D]``. labels: ``[B * H, S]``. means: ``[B * H, C, D]``, of which empty clusters are not seen.
    """
    worst = 0.0
    for lane in {0, labels.shape[0] - 1}:
        points, own = x[lane // x.shape[1], lane % x.shape[1]].double(), labels[lane].long()
        sizes = torch.zeros(means.shape[1], device=x.device).index_add_(0, own, torch.ones_like(own).float())
        sums = torch.zeros(means.shape[1:], dtype=torch.float64, device=x.device).index_add_(0, own, points)
        error = (sums / sizes.clamp_min(1)[:, None] - means[lane]).abs().amax(1)
        worst = max(worst, torch.where(sizes > 0, error, 0).max().item())
    if not worst < 1e-3:
        raise RuntimeError(f"a mean is off by {worst:.3g}: not timed")
    return worst


def case(heads: int, tokens: int, dim: int, clusters: int, iterations: int, repeats: int = 10) -> dict:
    """One number of clusters: milliseconds of each part, and what the checks found."""
    device, x = here(), _points(heads, tokens, dim)
    points, grid = x.transpose(1, 2), TokenGrid(1, 1, tokens)
    start = stratified_start(points, clusters)
    call = {"centroids": start, "iterations": iterations}
    centre = points.mean(2, dtype=torch.float32).flatten(0, 1)[:, None]
    before = [Start(start, centre, start.new_ones(len(start), 1, 1))]
    found = cluster_order(x, grid, [clusters], before, iterations)
    mean_error = check_runs(points, found.order, found.means, found.partition.run_sizes)
    labels = nearest_centroids(points, start)
    calls, worst, left_out = {}, 0.0, {}
    for some, look in (
        (_assignments(points, start), lambda _, labels: check(points, start, labels)),
        (_sorts(labels, clusters), lambda _, runs: check_order(labels, *runs)),
        (_updates(points, labels, start), lambda _, means: check_means(points, labels, means)),
    ):
        right, error, wrong = passing(some, look)
        calls, left_out, worst = calls | right, left_out | wrong, max(worst, error)
    alone = points.flatten(0, 1).contiguous()
    calls["k-means"] = lambda: cluster_runs(alone, **call)
    calls["order"] = lambda: cluster_order(x, grid, [clusters], before, iterations)
    times = timed(calls, device, repeats)
    shape = {"heads": heads, "tokens": tokens, "dim": dim, "clusters": clusters, "iterations": iterations}
    return {**shape, "error": worst, "mean_error": mean_error, "milliseconds": times, "left_out": left_out}


def _points(heads: int, tokens: int, dim: int) -> torch.Tensor:
    """Tokens as a model leaves them, ``[1, S, H, D]``."""
    device = here()
    made = torch.Generator(device).manual_seed(1)
    x = torch.randn(1, tokens, heads, dim, generator=made, device=device)
    return x.to(torch.bfloat16 if device.type == "cuda" else torch.float32)


def _assignments(points: torch.Tensor, start: torch.Tensor) -> dict[str, Callable]:
    """The assignment, in each of its variants where Triton runs."""
    if points.device.type != "cuda":
        return {"assign": lambda: nearest_centroids(points, start)}
    from dittools.kernels.kmeans.triton import Variant, default_variant, triton_assign

    variants = (
        default_variant(points.dtype), Variant(folded=True), Variant(stages=4), Variant(narrow=True),
        Variant(stages=2, narrow=True), Variant(folded=True, narrow=True), Variant(stages=2, folded=True, narrow=True),
        Variant(64, 64, 4, 2, narrow=True), Variant(64, 64, 4, 3, narrow=True), Variant(128, 128, 8, 2, narrow=True),
        Variant(128, 128, 8, 2, folded=True, narrow=True), Variant(64, 128, 4, 2, narrow=True),
        Variant(256, 64, 8, 2, narrow=True),
    )  # fmt: skip
    calls: dict[str, Callable] = {}
    for v in dict.fromkeys(variants):
        name = f"assign, {v.points} x {v.centroids}, {v.warps} warps, {v.stages} stages"
        calls[name + ", folded" * v.folded + ", narrow" * v.narrow] = lambda v=v: triton_assign(points, start, v)
    return calls


def _sorts(labels: torch.Tensor, clusters: int) -> dict[str, Callable]:
    """The sort, in each of its variants where Triton runs."""
    if labels.device.type != "cuda":
        return {"sort": lambda: sort_by_label(labels, clusters)}
    from dittools.kernels.counting_sort.triton import Variant, default_variant, triton_sort_by_label

    variants = (default_variant(clusters), Variant(1024), Variant(1024, 8), Variant(512), Variant(2048, 8))
    return {
        f"sort, {v.tokens} tokens, {v.warps} warps": lambda v=v: triton_sort_by_label(labels, clusters, v)
        for v in variants
    }


def _updates(points: torch.Tensor, labels: torch.Tensor, start: torch.Tensor) -> dict[str, Callable]:
    """The update, in each of its variants; it is Triton's alone."""
    if points.device.type != "cuda":
        return {}
    from dittools.kernels.kmeans.update_triton import Variant, triton_update

    runs = sort_by_label(labels, start.shape[1])
    variants = (
        Variant(), Variant(128, 4, 64), Variant(128, 8), Variant(64, 4), Variant(64, 4, 64), Variant(256, 4),
        Variant(256, 8), Variant(32, 4),
    )  # fmt: skip
    calls: dict[str, Callable] = {}
    for v in variants:
        limit = f", {v.registers} registers" if v.registers else ""
        name = f"update, {v.positions} positions, {v.warps} warps{limit}"
        calls[name] = lambda v=v: triton_update(points, labels, *runs, start, v)
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
