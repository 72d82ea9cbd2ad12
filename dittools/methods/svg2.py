"""Sparse VideoGen2: bring alike queries together and alike keys together, and attend from cluster to cluster.

Source: Yang et al., "Sparse VideoGen2", arXiv 2505.18875. Where the published code departs from the paper's idea,
this follows the idea: scores and their sums in fp32, empty clusters hold no mass, fresh starts are spread over the
sequence, and what is carried from step to step belongs to one run, layer and branch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import ClassVar

import torch

from dittools.clusters import ClusterMask
from dittools.kernels.lists import keep_mass
from dittools.methods.base import AttentionCall, Method, Plan
from dittools.orders.clusters import Clustered, cluster_order
from dittools.parts import inner_part
from dittools.selectors.areas import runs_of
from dittools.selectors.budget import SCOPES
from dittools.selectors.clustered import centroid_mass, spend_clusters

MOST = {"query": 300, "key": 1000}  # as published, for 75,600 tokens
ROWS_ON_A_GPU = 160  # queries a cluster needs on average to fill tiles of 128 rows well


@dataclass(frozen=True)
class SVG2(Method):
    """Order: k-means clusters, of queries and of keys apart. Selector: mass between cluster means. Budget: the same
    for every row. Text stays dense.
    """

    name: ClassVar[str] = "svg2"
    summary: ClassVar[str] = "clusters of alike queries attend to clusters of alike keys (Sparse VideoGen2)"
    decides: ClassVar[tuple[str, ...]] = ("top_p",)

    query_clusters: int | str = field(default="auto", metadata={"help": "per head; auto: up to 300, by tokens"})
    key_clusters: int | str = field(default="auto", metadata={"help": "per head; auto: up to 1000, by tokens"})
    top_p: float | None = field(default=None, metadata={"help": "mass to keep a row, in place of the asked sparsity"})
    min_share: float = field(default=0.1, metadata={"help": "with top_p: least share of key clusters to keep"})
    scope: str = field(default="row", metadata={"help": "who shares the budget: row, head or layer"})
    first_iterations: int = field(default=10, metadata={"help": "k-means iterations of a fresh start"})
    iterations: int = field(default=1, metadata={"help": "k-means iterations in later steps, from the step before"})

    def __post_init__(self):
        for name in ("query_clusters", "key_clusters", "first_iterations", "iterations"):
            value = getattr(self, name)
            auto = name.endswith("clusters") and value == "auto"
            if not auto and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if not 0 <= self.min_share <= 1:
            raise ValueError(f"min_share must be from 0 to 1, got {self.min_share!r}")
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {', '.join(SCOPES)}, got {self.scope!r}")

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan:
        query, key = self.clusters("query", q, call), self.clusters("key", k, call)
        force = None if query.text is None else query.text[:, None] | key.text
        keep = self.choose(query, key, k, v, call, force)
        mask = ClusterMask(keep, query.partition, key.partition)
        return Plan(query.order, mask, key_order=key.order)

    def clusters(self, side: str, x: torch.Tensor, call: AttentionCall) -> Clustered:
        """Clusters of one side, from where they stood in the step before."""
        before = call.state.get(side)
        iterations = self.first_iterations if before is None else self.iterations
        with inner_part("order"):
            tokens = [at.stop - at.start for _, at in runs_of(call.grid)]
            counts = [self.count(side, call, each) for each in tokens]
            made = cluster_order(x, call.grid, counts, before, iterations, call.generator)
        call.state[side] = made.starts
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
        return spend_clusters(mass, query, key, call.density, scope=self.scope)
