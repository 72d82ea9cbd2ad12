"""What stands around attention: lists, permutes, block mass and k-means, each against its own yardstick."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dittools.benchmarks import peers
from dittools.benchmarks.attention import DENSE, PATIENCE, Shape, best_of, fastest_dense
from dittools.benchmarks.contest import Contest
from dittools.benchmarks.dense import installed
from dittools.kernels import (
    block_sparse_attention,
    choose,
    cluster_tokens,
    from_keep,
    gather_tokens,
    measure_block_mass,
    scatter_tokens,
    schedule,
    stratified_start,
    to_keep,
)
from dittools.kernels.choice import choose_mass
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.proof.check import Oracle, Wrong, result_of
from dittools.kernels.proof.inputs import make_mask, make_order
from dittools.kernels.supervise import At

SAMPLES = 512


def measure_lists(job: dict[str, Any], at: At) -> dict[str, Any]:
    """Lists and the schedule from a boolean mask, in µs."""
    device = torch.device(job["device"])
    names = ("heads", "tokens", "query_block", "key_block", "density", "family")
    keep = make_mask(*(job[name] for name in names), device).keep
    contest = Contest(job, at)

    def judge(call) -> None:
        counts, indices, starts = call()
        if not torch.equal(to_keep(counts, indices, keep.shape[-1]), keep):
            raise Wrong("the lists are not those of the mask")
        ordered = counts.gather(-1, starts.long())
        if (ordered.diff(dim=-1) > 0).any() or not torch.equal(starts.sort(-1).values, _rows_of(starts)):
            raise Wrong("the schedule does not start the longest row first")

    for name in _implementations(job):

        def call(name=name):
            counts, indices = from_keep(keep, implementation=name)
            return counts, indices, schedule(counts)

        contest.enter(name, lambda call=call: call, judge, PATIENCE)
    return _finish(job, contest, device, 1000)


def measure_permute(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """q, k, v into an order and the output back, in % of the attention of our fastest kernel.

    Beside it: as many bytes copied without an order, the least that a pass through memory takes on that card.
    """
    tensors = shape.q, shape.k, shape.v
    order = make_order(job["heads"], job["tokens"], shape.device)
    contest = Contest(job, at)

    def judge(call) -> None:
        moved, back = call()
        for h in sorted({0, job["heads"] - 1}):
            index = order[0, h].long()
            if not all(torch.equal(x[0, :, h], y[0, index, h]) for x, y in zip(moved, tensors, strict=True)):
                raise Wrong(f"head {h} is not in its order")
            if not torch.equal(back[0, :, h], shape.q[0, :, h]):
                raise Wrong(f"head {h} is not where it was")

    for name in _implementations(job):

        def call(name=name):
            moved = gather_tokens(tensors, order, implementation=name)
            return moved, scatter_tokens(moved[:1], order, implementation=name)[0]

        contest.enter(name, lambda call=call: call, judge, PATIENCE)

    def copied(call) -> None:
        if not all(torch.equal(x, y) for x, y in zip(call(), (*tensors, shape.q), strict=True)):
            raise Wrong("a copy differs")

    contest.enter("plain copies", lambda: lambda: [x.clone() for x in (*tensors, shape.q)], copied, PATIENCE)
    ours = _implementations(job)
    mask = make_mask(
        job["heads"], job["tokens"], job["query_block"], job["key_block"], job["density"], job["family"], shape.device
    )
    kernel = job["implementation"] or choose(*tensors, mask)
    oracle = Oracle(*tensors, mask, shape.scale)
    attend = {"scale": shape.scale, "implementation": kernel}
    contest.enter(
        f"attention: {kernel}",
        lambda: lambda: block_sparse_attention(*tensors, mask, **attend),
        lambda call: oracle.judge(*result_of(call)),
        PATIENCE,
    )
    name = f"attention: {kernel}"
    found = _finish(job, contest, shape.device, 100, ours=ours, of=lambda times, kind: times.get(name, {}).get(kind))
    return {**found, "ours": [*ours, name]}


def measure_mass(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """Block mass against dense attention: both passes, or (a row named so) the second with the LSE known."""
    query, key = (Partition(job["tokens"], job[name]) for name in ("query_block", "key_block"))
    contest = Contest(job, at)
    lse = None
    if job["name"] == "mass-lse":
        at("lse", PATIENCE)
        full = BlockMask.full(query, key, shape.device)
        _, lse = block_sparse_attention(shape.q, shape.k, shape.v, full, scale=shape.scale, return_lse=True)
        at("", PATIENCE)
    rows = torch.arange(query.size, device=shape.device)

    def judge(call) -> None:
        mass = call()
        for h, m in ((0, 0), (job["heads"] - 1, query.count // 2)):
            mine = (m * query.size + rows)[: query.length - m * query.size]
            logits = shape.q[0, mine, h].float() @ shape.k[0, :, h].float().T * shape.scale
            weights = torch.nn.functional.pad(logits.softmax(-1).sum(0), (0, key.count * key.size - key.length))
            wanted = weights.view(key.count, key.size).sum(-1)
            error = ((mass[0, h, m] - wanted).norm() / wanted.norm()).item()
            if not error < 1e-2:
                raise Wrong(f"block mass is off by {error:.1e} in query block {m} of head {h}")

    # What a call takes by itself here, and what was asked for by name.
    names = _implementations(job)
    if job["implementation"] is None and job["device"] == "cuda":
        names = [choose_mass(shape.q, shape.k, query, key, known=lse is not None)]
    for name in names:

        def call(name=name):
            return measure_block_mass(shape.q, shape.k, query, key, scale=shape.scale, lse=lse, implementation=name)

        contest.enter(name, lambda call=call: call, judge, PATIENCE)
    contest.calls |= shape.baselines()
    found = _finish(
        job, contest, shape.device, 1, ours=names,
        of=lambda times, kind: times.get(f"{DENSE}{fastest_dense(times, kind)}", {}).get(kind),
    )  # fmt: skip
    return {"dense": fastest_dense(found["times"]), **found}


def measure_kmeans(job: dict[str, Any], at: At) -> dict[str, Any]:
    """Two iterations of k-means over all heads, in ms."""
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    generator = torch.Generator(device).manual_seed(0)
    shape = (job["heads"], job["tokens"], job["head_dim"])
    x = torch.randn(shape, device=device, dtype=dtype, generator=generator)
    start = stratified_start(x, job["clusters"][1])
    sample = torch.arange(0, job["tokens"], max(1, job["tokens"] // SAMPLES), device=device)
    contest = Contest(job, at)

    def judge(name: str) -> None:
        labels, centroids, _ = cluster_tokens(x, centroids=start, iterations=1, implementation=name)
        for lane in sorted({0, job["heads"] - 1}):
            distance = torch.cdist(x[lane, sample].float()[None], start[lane][None])[0]
            taken = distance.gather(1, labels[lane, sample, None].long())[:, 0]
            if not (taken <= distance.min(1).values * 1.01).all():
                raise Wrong(f"a point of lane {lane} is not with its nearest centroid")
            for c in (0, start.shape[1] - 1):
                mine = x[lane, labels[lane] == c].float()
                wanted = mine.mean(0) if len(mine) else start[lane, c]
                if not torch.allclose(centroids[lane, c], wanted, atol=1e-2):
                    raise Wrong(f"centroid {c} of lane {lane} is not the mean of its points")

    ours = _implementations(job)
    for name in ours:

        def call(name=name):
            return cluster_tokens(x, centroids=start, iterations=2, implementation=name)

        contest.enter(name, lambda call=call: call, lambda _, name=name: (judge(name), call(name)), PATIENCE)
    if job.get("peers") and device.type == "cuda":
        if installed("flash_kmeans"):
            contest.enter("flash-kmeans", lambda: peers.flash_kmeans(x, start, 2), lambda call: call(), 120, peer=True)
        else:
            contest.not_run["flash-kmeans"] = "flash_kmeans is not installed"
    return _finish(job, contest, device, 1, ours=ours)


def _implementations(job: dict[str, Any]) -> list[str]:
    """ "triton" on a card, plain PyTorch elsewhere; or the one that was asked for, where there is such a one."""
    asked = job["implementation"]
    if asked in ("triton", "portable"):
        return [asked]
    return ["triton"] if job["device"] == "cuda" else ["portable"]


def _rows_of(starts: torch.Tensor) -> torch.Tensor:
    return torch.arange(starts.shape[-1], device=starts.device, dtype=starts.dtype).expand(starts.shape)


def _finish(
    job: dict[str, Any],
    contest: Contest,
    device: torch.device,
    factor: float,
    *,
    ours: list[str] | None = None,
    of: Callable[[dict[str, Any], str], dict[str, Any] | None] | None = None,
) -> dict[str, Any]:
    """Time what is right. The value is ms x factor, over the ms of what ``of`` picks from (times, kind of figure)."""
    ours = _implementations(job) if ours is None else ours
    times = contest.time(device, job)
    valued = {}
    for name in ours:
        for kind, figures in times.get(name, {}).items():
            base = of(times, kind) if of else {"ms": 1.0}
            if base is not None:
                figures["value"] = figures["ms"] * factor / base["ms"]
                valued.setdefault(name, {})[kind] = figures
    return {
        "times": times, "ours": ours, "wrong": contest.wrong, "not_run": contest.not_run,
        **best_of(valued, lambda figures: figures["value"], largest=False),
    }  # fmt: skip
