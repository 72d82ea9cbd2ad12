"""Attention between k-means clusters of queries and of keys, of any size: rows of kind "clusters".

Useful work is the pairs of the selected cluster pairs. Beside the kernel for clusters, where there is one, stands what
kernels of even blocks can do: queries and keys sorted by cluster, and every 128 x 64 block that a selected pair
touches. That computes more than was asked for, which r shows.
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.benchmarks.attention import PATIENCE, Shape, best_of, fastest_dense, rates
from dittools.benchmarks.contest import Contest
from dittools.kernels import (
    block_sparse_attention,
    cluster_tokens,
    from_keep,
    gather_tokens,
    keep_top_k,
    scatter_tokens,
    sort_by_label,
    stratified_start,
)
from dittools.kernels.capability import why_not
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.proof.check import Oracle, result_of
from dittools.kernels.supervise import At

QUERY_BLOCK, KEY_BLOCK = 128, 64


class Clustered:
    """Queries and keys of a shape in clusters, and which pairs are selected: those with the nearest centroids.

    Attributes:
        query_order, key_order: int32 ``[1, H, S]``, position -> token.
        query_offsets, key_offsets: int32 ``[H, C + 1]``, where each cluster begins.
        selected: bool ``[1, H, Cq, Ck]``.
        kept: share of all pairs in selected cluster pairs.
    """

    def __init__(self, shape: Shape, clusters: tuple[int, int], density: float):
        q, k = (x[0].transpose(0, 1) for x in (shape.q, shape.k))  # [H, S, D]
        found = [self._cluster(x, count) for x, count in zip((q, k), clusters, strict=True)]
        (self.query_order, self.query_offsets, of_queries), (self.key_order, self.key_offsets, of_keys) = found
        scores = of_queries @ of_keys.transpose(1, 2)  # [H, Cq, Ck]
        self.selected = keep_top_k(scores, max(1, round(density * clusters[1])))[None]
        sizes = [x.diff(dim=-1).double() for x in (self.query_offsets, self.key_offsets)]
        pairs = torch.einsum("hqk,hq,hk->h", self.selected[0].double(), *sizes)
        self.kept = (pairs.mean() / q.shape[1] ** 2).item()

    @staticmethod
    def _cluster(x: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found = cluster_tokens(x, centroids=stratified_start(x, count), iterations=2)
        order, offsets = sort_by_label(found.labels, count)
        return order[None], offsets, found.centroids

    def rounded(self, tokens: int) -> BlockMask:
        """Every block that holds a selected pair. No host sync."""
        query, key = Partition(tokens, QUERY_BLOCK), Partition(tokens, KEY_BLOCK)
        touched = [_touches(o, part) for o, part in ((self.query_offsets, query), (self.key_offsets, key))]
        keep = touched[0].transpose(1, 2) @ self.selected[0].float() @ touched[1]  # [H, Mq, Nk]
        return BlockMask.from_kv_blocks(*from_keep((keep > 0)[None], implementation=None), query, key)

    def mask(self, tokens: int) -> Any:
        """The selected pairs themselves, as a mask of clusters."""
        from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

        sizes = [x.diff(dim=-1).int()[None] for x in (self.query_offsets, self.key_offsets)]
        return ClusterMask(self.selected, *(ClusterPartition(tokens, x) for x in sizes))


def _touches(offsets: torch.Tensor, part: Partition) -> torch.Tensor:
    """Which clusters have tokens in which block: 0 or 1, fp32 ``[H, C, blocks]``."""
    begin = torch.arange(part.count, device=offsets.device) * part.size
    first, stop = offsets[:, :-1, None], offsets[:, 1:, None]
    return ((first < begin + part.size) & (stop > begin) & (stop > first)).float()


def measure_clusters(job: dict[str, Any], shape: Shape, at: At) -> dict[str, Any]:
    """The kernel alone, or (a row named so) with lists and permutes; the clusters are there before."""
    at("k-means", PATIENCE)
    found = Clustered(shape, tuple(job["clusters"]), job["density"])
    at("", PATIENCE)
    mask = found.rounded(job["tokens"])
    q, k, v, scale = shape.q, shape.k, shape.v, shape.scale
    (in_order,) = gather_tokens((q,), found.query_order)
    keys, values = gather_tokens((k, v), found.key_order)
    oracle = Oracle(in_order, keys, values, mask, scale)
    contest = Contest(job, at)
    contest.calls |= shape.baselines()
    ours = []
    asked = job["implementation"]
    for kernel in [asked] if asked else ["hopper", "triton"] if shape.device.type == "cuda" else ["portable"]:
        reason = why_not(kernel, q, k, v, mask)
        name = f"{kernel}, rounded to {QUERY_BLOCK} x {KEY_BLOCK} blocks"
        if reason is not None:
            contest.not_run[name] = reason
            continue

        def alone(kernel=kernel):
            return block_sparse_attention(in_order, keys, values, mask, scale=scale, implementation=kernel)

        def all_of_it(kernel=kernel):
            (some,) = gather_tokens((q,), found.query_order)
            pair = gather_tokens((k, v), found.key_order)
            blocks = found.rounded(job["tokens"])
            out = block_sparse_attention(some, *pair, blocks, scale=scale, implementation=kernel)
            return scatter_tokens((out,), found.query_order)[0]

        def judge(call, whole: bool) -> None:
            out = result_of(call)[0]
            oracle.judge(gather_tokens((out,), found.query_order)[0] if whole else out)

        whole = job["name"] == "clusters-all"
        call = all_of_it if whole else alone
        contest.enter(name, lambda call=call: call, lambda call, whole=whole: judge(call, whole), PATIENCE)
        ours.append(name)
    ours += _enter_clustered(contest, job, shape, found, (in_order, keys, values))
    times = contest.time(shape.device, job)
    rates(times, job, found.kept)
    return {
        "kept": found.kept, "kept_computed": mask.density().double().mean().item(), "dense": fastest_dense(times),
        "times": times, "ours": ours, "wrong": contest.wrong, "not_run": contest.not_run,
        **best_of({n: times[n] for n in ours if n in times}, lambda f: f["r"], largest=True),
    }  # fmt: skip


def _enter_clustered(
    contest: Contest, job: dict[str, Any], shape: Shape, found: Clustered, in_order: tuple[torch.Tensor, ...]
) -> list[str]:
    """The kernels for clusters: on tensors in order, or with orders; lists are made anew in every call."""
    asked = job["implementation"]
    whole = job["name"] == "clusters-all"
    tensors = (shape.q, shape.k, shape.v) if whole else in_order
    orders = {"order": found.query_order, "key_order": found.key_order} if whole else {}
    mask = found.mask(job["tokens"])
    oracle = Oracle(*tensors, mask, shape.scale, *orders.values())
    entered = []
    for kernel in [asked] if asked else ["hopper", "triton"] if shape.device.type == "cuda" else ["portable"]:
        reason = why_not(kernel, *tensors, mask)
        name = f"{kernel}, clusters"
        if reason is not None:
            contest.not_run[name] = reason
            continue

        def call(kernel=kernel) -> torch.Tensor:
            fresh = found.mask(job["tokens"]) if whole else mask
            return block_sparse_attention(*tensors, fresh, scale=shape.scale, implementation=kernel, **orders)

        contest.enter(name, lambda call=call: call, lambda call: oracle.judge(*result_of(call)), PATIENCE)
        entered.append(name)
    return entered
