"""Does the Hopper kernel for k-means prove itself on this card? The cases of `dittools.bench.proof` for it."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from dittools.bench.check import Wrong, poisoned, stop_if_broken
from dittools.bench.timing import burst
from dittools.kernels import nearest_centroids
from dittools.kernels.kmeans import FEW, MANY
from dittools.kernels.supervise import At

KMEANS = "hopper-kmeans"
TRITON = "triton, k-means"
# points, heads, batch
SIZES = ((1, 1, 1), (129, 2, 1), (1_000, 3, 2), (4_111, 2, 1), (75_600, 3, 1))
FORMS = ((128, "bfloat16"), (64, "bfloat16"), (128, "float16"))
CLUSTERS = (1, 128, 300, 1000)
SPEED_SHAPE = (12, 75_600)
SPEED_CLUSTERS = {FEW: 300, MANY: 1000}
REPEATS = 5
SLACK = 1e-5  # of |x|^2 + |c|^2, by which a distance may be larger than the least


def kmeans_jobs() -> list[dict[str, Any]]:
    """What the kernel has to pass, small cases first, then the two that are timed."""
    cases = [
        {
            "kind": "kmeans-proof", "id": f"k-means, {clusters} clusters, hd{dim} {dtype} {tokens} tokens",
            "head_dim": dim, "dtype": dtype, "tokens": tokens, "heads": heads, "batch": batch, "clusters": clusters,
            "device": "cuda",
        }
        for (tokens, heads, batch), (dim, dtype), clusters in itertools.product(SIZES, FORMS, CLUSTERS)
        if tokens != 75_600 or dtype == "bfloat16"
    ]  # fmt: skip
    heads, tokens = SPEED_SHAPE
    speed = {
        "kind": "kmeans-faster", "heads": heads, "tokens": tokens, "head_dim": 128, "batch": 1, "dtype": "bfloat16",
        "device": "cuda", "seconds": 4,
    }  # fmt: skip
    return [
        *cases,
        *(
            {**speed, "call": call, "clusters": n, "id": f"speed of k-means, {call}"}
            for call, n in SPEED_CLUSTERS.items()
        ),
    ]


def prove_kmeans(job: dict[str, Any], at: At) -> dict[str, Any]:
    """One case: every label names a nearest centroid and of equal ones the lowest, the same bits each time.

    Raises:
        Wrong: when it is not.
    """
    stop_if_broken(job, KMEANS)
    x, centroids = _inputs(job)
    if job["clusters"] > 2:
        centroids[:, job["clusters"] // 2] = centroids[:, 0]  # a twin, which gets no point
    call = {"implementation": job.get("kernel", "hopper")}
    at(KMEANS, 60)
    with poisoned():
        labels = nearest_centroids(x, centroids, **call)
    judge(x, centroids, labels)
    if job["clusters"] > 2 and (labels == job["clusters"] // 2).any():
        raise Wrong("of two centroids that are alike the higher took a point")
    for _ in range(REPEATS):
        if not torch.equal(nearest_centroids(x, centroids, **call), labels):
            raise Wrong("two calls on the same input differ")
    return {"right": True}


def judge(x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor) -> float:
    """How much farther than the nearest centroid a point's own is at most, of the sizes of both; all lanes are seen.

    Args:
        x: ``[B, H, S, D]``. centroids: ``[B * H, C, D]``. labels: ``[B * H, S]``.

    Raises:
        Wrong: when that is no rounding.
    """
    if labels.min() < 0 or labels.max() >= centroids.shape[1]:
        raise Wrong("a label names no centroid")
    worst = 0.0
    for lane in range(labels.shape[0]):
        points, means = x[lane // x.shape[1], lane % x.shape[1]].double(), centroids[lane].to(x.dtype).double()
        half = means.square().sum(-1) / 2
        for part, own in zip(points.split(4096), labels[lane].long().split(4096), strict=True):
            scores = part @ means.T - half  # [points, C]
            size = part.square().sum(-1) + 2 * half[own] + 1e-6
            gap = scores.amax(-1) - scores.gather(1, own[:, None])[:, 0]
            worst = max(worst, (gap / size).max().item())
    if not worst <= SLACK:
        raise Wrong(f"a point's centroid is {worst:.1e} of its size farther than the nearest")
    return worst


def kmeans_faster(job: dict[str, Any], at: At) -> dict[str, Any]:
    """Milliseconds of the kernel and of Triton's, in turn, once both are right; "speedup" of the first."""
    stop_if_broken(job, KMEANS, TRITON)
    x, centroids = _inputs(job)
    names = dict(zip((KMEANS, TRITON), job.get("kernels", ("hopper", "triton")), strict=True))
    calls = {}
    for said, name in names.items():
        at(said, 60)
        with poisoned():
            labels = nearest_centroids(x, centroids, implementation=name)
        judge(x, centroids, labels)
        calls[said] = lambda name=name: nearest_centroids(x, centroids, implementation=name)
    times = burst(calls, x.device, job["seconds"], tell=lambda name: at(name, 30))
    return {"times": times, "speedup": times[TRITON]["ms"] / times[KMEANS]["ms"]}


def _inputs(job: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Points ``[B, H, S, D]`` as a model leaves them, and centroids among them."""
    generator = torch.Generator(job["device"]).manual_seed(3)
    size = (job["batch"], job["tokens"], job["heads"], job["head_dim"])
    made = {"device": job["device"], "generator": generator}
    x = torch.randn(size, **made).to(getattr(torch, job["dtype"])).transpose(1, 2)
    centroids = torch.randn(job["batch"] * job["heads"], job["clusters"], job["head_dim"], **made)
    return x, centroids
