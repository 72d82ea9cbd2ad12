"""Gathers views of chosen heads while a run goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from dittools.attention_maps.classes import Shares, head_shares
from dittools.kernels import gather_tokens, measure_block_mass
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.masks.cluster_mask import ClusterMask, lane
from dittools.methods.base import Plan
from dittools.observer import AttentionEvent

BLOCK = 64


@dataclass(frozen=True)
class Choice:
    """Which calls to look at: indices of steps, layers and heads, from 0."""

    steps: tuple[int, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]


@dataclass(eq=False)
class View:
    """One head in one layer, step and branch.

    map: softmax mass of blocks of positions in raster, ``[M, M]``; a row block sums to its queries.
    shares: where the head attends. ordered, keep, recall, density: the map in the order of the plan that ran, its
    mask (with fewer keys, the computed share of each block), the share of the true mass it keeps and of the pairs it
    computes; None where the call ran dense.
    reordered: whether the plan has an order other than raster.
    """

    step: int
    layer: int
    head: int
    branch: str
    map: torch.Tensor
    shares: Shares
    ordered: torch.Tensor | None = None
    keep: torch.Tensor | None = None
    recall: float | None = None
    density: float | None = None
    reordered: bool = False


def recall_of(views: Iterable[View]) -> str:
    """For people: how much of the true mass the plans of the sparse views hold."""
    views = list(views)
    sparse = [view.recall for view in views if view.recall is not None]
    if not sparse:
        return f"{len(views)} heads shown, all from dense calls"
    mean = f"{len(views)} heads shown; recall of {len(sparse)} sparse ones {sum(sparse) / len(sparse):.1%}"
    return f"{mean} on average, {min(sparse):.1%} at least"


class Viewer:
    """Listens to a `Runtime`: put `observe` among its watchers and `plan` among its plan watchers.

    Looks at the first guidance branch only. What it keeps is of the size of block masks.
    """

    def __init__(self, choice: Choice):
        self.choice = choice
        self.views: dict[tuple[int, int, int], View] = {}
        self.grid = None
        self._branch: str | None = None

    def observe(self, event: AttentionEvent) -> None:
        """Note a call before it is decided."""
        if not self._chosen(event):
            return
        self.grid = event.grid
        q, k = self._heads(event)
        partition = Partition(event.grid.tokens, BLOCK)
        maps = measure_block_mass(q, k, partition, partition, scale=event.scale).mean(0).cpu()
        shares = head_shares(q, k, event.grid, event.scale, BLOCK)
        for n, head in enumerate(self.choice.heads):
            place = event.step_info.step, event.layer, head
            self.views[place] = View(*place, event.step_info.branch, maps[n], shares[n])

    def plan(self, event: AttentionEvent, plan: Plan) -> None:
        """Note the plan of a sparse call."""
        if not self._chosen(event):
            return
        if plan.keys is not None or isinstance(plan.mask, ClusterMask):
            self._plan_by_tokens(event, plan)
            return
        q, k = self._heads(event)
        heads, mask = list(self.choice.heads), plan.mask
        keep = mask.keep[0].expand(event.q.shape[2], -1, -1)[heads]
        straight = torch.arange(event.grid.tokens, device=q.device)
        order = straight.int()[None].expand(len(heads), -1)
        if plan.order is not None:
            order = plan.order[0].expand(event.q.shape[2], -1)[heads].to(q.device)
        mass = measure_block_mass(*gather_tokens((q, k), order[None]), mask.query, mask.key, scale=event.scale)[0]
        recall = (mass * keep).sum((-1, -2)) / mass.sum((-1, -2))
        density = mask.density()[0].expand(event.q.shape[2])[heads]
        for n, head in enumerate(heads):
            view = self.views[event.step_info.step, event.layer, head]
            view.ordered, view.keep = mass[n].cpu(), keep[n].cpu()
            view.recall, view.density = recall[n].item(), density[n].item()
            view.reordered = bool((order[n] != straight).any())

    def _plan_by_tokens(self, event: AttentionEvent, plan: Plan) -> None:
        """The same for clusters, as clusters by clusters, and for fewer keys, as shares of the map's own blocks."""
        q, k = self._heads(event)
        density = plan.density()[0].expand(event.q.shape[2])
        for n, head in enumerate(self.choice.heads):
            view = self.views[event.step_info.step, event.layer, head]
            measure = _fewer_keys if plan.keys is not None else _clusters
            view.ordered, view.keep, view.recall = measure(q[0, :, n], k[0, :, n], plan, head, event.scale)
            view.density, view.reordered = density[head].item(), plan.keys is None

    def _chosen(self, event: AttentionEvent) -> bool:
        if self._branch is None:
            self._branch = event.step_info.branch
        same = event.step_info.branch == self._branch
        return same and event.step_info.step in self.choice.steps and event.layer in self.choice.layers

    def _heads(self, event: AttentionEvent) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k of the chosen heads, of the first of a batch: plans of a batch may differ."""
        heads = list(self.choice.heads)
        return event.q[:1, :, heads], event.k[:1, :, heads]


def _clusters(q: torch.Tensor, k: torch.Tensor, plan: Plan, head: int, scale: float):
    """(map, mask, recall) of one head, each cluster of queries by each cluster of keys."""
    mask = plan.mask.to(q.device)
    order = lane(plan.order, 0, head).to(q.device)
    key_order = order if plan.key_order is None else lane(plan.key_order, 0, head).to(q.device)
    keep, rows, columns = (lane(x, 0, head) for x in (mask.keep, mask.query.labels(), mask.key.labels()))
    found = torch.zeros(keep.shape, device=q.device)
    for queries, share in _softmax_rows(q[order.long()], k[key_order.long()], scale):
        found.index_add_(0, rows[queries], share.new_zeros(len(share), keep.shape[1]).index_add_(1, columns, share))
    return found.cpu(), keep.cpu(), ((found * keep).sum() / found.sum()).item()


def _fewer_keys(q: torch.Tensor, k: torch.Tensor, plan: Plan, head: int, scale: float):
    """(map, computed share of each block, recall) of one head, in raster."""
    keys, tokens = plan.keys, len(q)
    block = torch.arange(tokens, device=q.device) // BLOCK
    blocks = -(-tokens // BLOCK)
    found, kept, pairs = torch.zeros(3, blocks, blocks, device=q.device)
    recall = found.new_zeros(())
    for queries, share in _softmax_rows(q, k, scale):
        few = (queries >= keys.queries.start) & (queries < keys.queries.stop)
        seen = torch.ones(share.shape, dtype=torch.bool, device=q.device)
        seen[few] = False
        picked = plan.mask.to_tokens(0, head, queries[few] - keys.queries.start).to(q.device)
        seen[few.nonzero(), keys.tokens.to(q.device)[None]] = picked
        for total, what in ((found, share), (kept, seen.float()), (pairs, torch.ones_like(share))):
            total.index_add_(0, block[queries], share.new_zeros(len(share), blocks).index_add_(1, block, what))
        recall = recall + (share * seen).sum()
    return found.cpu(), (kept / pairs).cpu(), (recall / tokens).item()


def _softmax_rows(q: torch.Tensor, k: torch.Tensor, scale: float):
    """Runs of queries, and their softmax weights over all keys: fp32 ``[run, S]``."""
    for start in range(0, len(q), 4 * BLOCK):
        queries = torch.arange(start, min(start + 4 * BLOCK, len(q)), device=q.device)
        yield queries, (q[queries].float() @ k.float().T * scale).softmax(-1)
