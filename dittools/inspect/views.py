"""Gathers views of chosen heads while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dittools.blocks import Partition
from dittools.inspect.classes import Shares, head_shares
from dittools.kernels import gather_tokens, measure_block_mass
from dittools.methods.base import Plan
from dittools.runtime import Heard

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
    mask, the share of the true mass it keeps and of the pairs it computes; None where the call ran dense.
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


class Viewer:
    """Listens to a `Runtime`: put `hear` among its watchers and `plan` among its plan watchers.

    Looks at the first guidance branch only. What it keeps is of the size of block masks.
    """

    def __init__(self, choice: Choice):
        self.choice = choice
        self.views: dict[tuple[int, int, int], View] = {}
        self.grid = None
        self._branch: str | None = None

    def hear(self, heard: Heard) -> None:
        """Note a call before it is decided."""
        if not self._chosen(heard):
            return
        self.grid = heard.grid
        q, k = self._heads(heard)
        partition = Partition(heard.grid.tokens, BLOCK)
        maps = measure_block_mass(q, k, partition, partition, scale=heard.scale).mean(0).cpu()
        shares = head_shares(q, k, heard.grid, heard.scale, BLOCK)
        for n, head in enumerate(self.choice.heads):
            place = heard.tick.step, heard.layer, head
            self.views[place] = View(*place, heard.tick.branch, maps[n], shares[n])

    def plan(self, heard: Heard, plan: Plan) -> None:
        """Note the plan of a sparse call."""
        if not self._chosen(heard):
            return
        q, k = self._heads(heard)
        heads, mask = list(self.choice.heads), plan.mask
        keep = mask.keep[0].expand(heard.q.shape[2], -1, -1)[heads]
        straight = torch.arange(heard.grid.tokens, device=q.device)
        order = straight.int()[None].expand(len(heads), -1)
        if plan.order is not None:
            order = plan.order[0].expand(heard.q.shape[2], -1)[heads].to(q.device)
        mass = measure_block_mass(*gather_tokens((q, k), order[None]), mask.query, mask.key, scale=heard.scale)[0]
        recall = (mass * keep).sum((-1, -2)) / mass.sum((-1, -2))
        density = mask.density()[0].expand(heard.q.shape[2])[heads]
        for n, head in enumerate(heads):
            view = self.views[heard.tick.step, heard.layer, head]
            view.ordered, view.keep = mass[n].cpu(), keep[n].cpu()
            view.recall, view.density = recall[n].item(), density[n].item()
            view.reordered = bool((order[n] != straight).any())

    def _chosen(self, heard: Heard) -> bool:
        if self._branch is None:
            self._branch = heard.tick.branch
        same = heard.tick.branch == self._branch
        return same and heard.tick.step in self.choice.steps and heard.layer in self.choice.layers

    def _heads(self, heard: Heard) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k of the chosen heads, of the first of a batch: plans of a batch may differ."""
        heads = list(self.choice.heads)
        return heard.q[:1, :, heads], heard.k[:1, :, heads]
