"""Sparse VideoGen2: bring alike queries together and alike keys together, and attend from cluster to cluster.

Source: Yang et al., "Sparse VideoGen2", arXiv 2505.18875. Where the published code departs from the paper's idea,
this follows the idea: scores and their sums in fp32, empty clusters hold no mass, fresh starts are spread over the
sequence, and what is carried from step to step belongs to one run, layer and branch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.kernels.block_sparse.lists import keep_mass
from dittools.kernels.masks.cluster_mask import ClusterMask
from dittools.methods.base import AttentionCall, Method, Plan
from dittools.methods.options import option, scope_option, share_option
from dittools.orders.clusters import Clustered, cluster_order
from dittools.parts import part
from dittools.selection.areas import area_segments
from dittools.selection.clustered import centroid_mass, select_topk_clusters

MOST = {"query": 300, "key": 1000}  # as published, for 75,600 tokens
ROWS_ON_A_GPU = 160  # queries a cluster needs on average to fill tiles of 128 rows well


@dataclass(frozen=True)
class SVG2(Method):
    """Order: k-means clusters, of queries and of keys apart. Selector: mass between cluster means. Budget: the same
    for every row. Text stays dense.
    """

    name: ClassVar[str] = "svg2"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "clusters of alike queries attend to clusters of alike keys (Sparse VideoGen2)"
    decides: ClassVar[tuple[str, ...]] = ("top_p",)
    reads: ClassVar[tuple[str, ...]] = ("q", "k")

    query_clusters: int | str = option("auto", "per head; auto: up to 300, by tokens", kind="count", min=1)
    key_clusters: int | str = option("auto", "per head; auto: up to 1000, by tokens", kind="count", min=1)
    top_p: float | None = share_option("mass to keep a row, in place of the asked sparsity")
    min_share: float = option(0.1, "with top_p: least share of key clusters to keep", min=0, max=1)
    scope: str = scope_option("row")
    first_iterations: int = option(10, "k-means iterations of a fresh start", min=1)
    iterations: int = option(1, "k-means iterations in later steps, from the step before", min=1)

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        query, key = self.clusters("query", q, call), self.clusters("key", k, call)
        force = None if query.text is None else query.text[:, None] | key.text
        keep = self.choose(query, key, k, v, call, force)
        mask = ClusterMask(keep, query.partition, key.partition)
        return Plan(query.order, mask, key_order=key.order)

    def clusters(self, side: str, x: torch.Tensor, call: AttentionCall) -> Clustered:
        """Clusters of one side, from where they stood in the step before."""
        before = call.branch_state.get(side)
        iterations = self.first_iterations if before is None else self.iterations
        with part("order"):
            tokens = [at.stop - at.start for _, at in area_segments(call.grid)]
            counts = [self.count(side, call, each) for each in tokens]
            made = cluster_order(x, call.grid, counts, before, iterations, call.generator)
        call.branch_state[side] = made.starts
        return made

    def count(self, side: str, call: AttentionCall, tokens: int) -> int:
        """How many clusters the tokens of an area get."""
        asked = getattr(self, f"{side}_clusters")
        if asked == "auto":
            each = call.block_size // (2 if side == "query" else 4)
            if side == "query" and call.block_size >= 128:
                each = ROWS_ON_A_GPU
            asked = max(1, min(MOST[side], tokens // each))
        return min(asked, tokens)

    def choose(self, query: Clustered, key: Clustered, k, v, call: AttentionCall, force) -> torch.Tensor:
        """Pairs of clusters to compute: bool ``[B, H, Mq, Nk]``."""
        mass = centroid_mass(query, key, call.scale)
        if self.top_p is not None:
            return keep_mass(mass, self.top_p, min_share=self.min_share, force=force)
        return select_topk_clusters(mass, query, key, call.density, scope=self.scope, heads=call.heads)
