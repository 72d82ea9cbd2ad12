"""PAROAttention's calibration: the order of every head, then the mass of its blocks by group of steps.

Source: arXiv 2506.16054. A group is one step in the first half of the run, and the whole second half (section 4.3).
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.blocks import Partition
from dittools.calibrate.base import Calibrator, Size, fill_groups, spread_steps
from dittools.calibrate.block_statistics import (
    block_statistics,
    incoherence,
    kept_share,
    order_loss,
    sparse_share,
)
from dittools.kernels import gather_tokens, measure_block_mass
from dittools.orders.axes import AXES, axis_order
from dittools.runtime import Heard
from dittools.selectors.budget import spend
from dittools.selectors.profiled import always_kept, encode_mass, pack

MOST_MASS_BYTES = 32 << 20
"""Above it a profile holds masks in bits instead of masses, at `SPARSITIES`."""
SPARSITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9)
FEW_GROUPS = 4
# The paper's eps is a weight of 1e-3, which is much on a small grid and little on a large one; here it is a multiple of
# the mean weight 1 / S. Its alpha is not published: incoherence only matters to low-bit attention, which is not here.
EPS, SIGMA, ALPHA = 1.0, 0.9, 1.0
KEPT = 0.2
"""Share of the blocks by whose mass orders are compared."""


class PARO(Calibrator):
    method, rounds, by_step = "paro", 2, True
    sampled_steps = 3
    sampled_blocks = 12

    def __init__(self, size: Size):
        super().__init__(size)
        self.steps = spread_steps(size.steps, self.sampled_steps)
        lanes = (len(AXES), size.layers, size.heads)
        self.sparse, self.quant, self.kept = (torch.zeros(lanes) for _ in range(3))
        self.heard = torch.zeros(size.layers)
        self.axes: torch.Tensor | None = None
        self.mass: torch.Tensor | None = None

    def hear(self, heard: Heard, round: int) -> None:
        self.grid = heard.grid
        if round == 0:
            if heard.tick.step in self.steps:
                self._score_orders(heard)
        else:
            self._add_mass(heard)

    def _score_orders(self, heard: Heard) -> None:
        partition = Partition(heard.grid.tokens, self.size.block_size)
        blocks = spread_steps(partition.count, self.sampled_blocks)
        sizes = partition.sizes(heard.q.device)
        weights = sizes[blocks][:, None] * sizes  # in each block, [n, M]
        for n, axes in enumerate(AXES):
            order = axis_order(heard.grid, axes).to(heard.q.device)[None, None]
            q, k = gather_tokens((heard.q, heard.k), order)
            found = block_statistics(q, k, partition, blocks, heard.scale, EPS / heard.grid.tokens)
            self.sparse[n, heard.layer] += sparse_share(found, SIGMA).cpu()
            self.quant[n, heard.layer] += incoherence(found, weights).cpu()
            self.kept[n, heard.layer] += kept_share(found, KEPT).cpu()
        self.heard[heard.layer] += 1

    def choose_axes(self) -> torch.Tensor:
        """The order of every head, in which the heaviest blocks hold most: uint8 ``[layers, heads]``.

        The paper's own score counts small weights instead. With its sign put right it still kept clearly less mass on
        the embedded model, at every eps tried: it is written to the profile for comparison, and not used.
        """
        return self.kept.argmax(0).to(torch.uint8)

    def paper_loss(self) -> torch.Tensor:
        """The paper's score of every order, of which the least is best: ``[orders, layers, heads]``."""
        count = self.heard.clamp_min(1)[:, None]
        return order_loss(self.sparse / count, self.quant / count, ALPHA)

    def _add_mass(self, heard: Heard) -> None:
        partition = Partition(heard.grid.tokens, self.size.block_size)
        if self.axes is None:
            self.axes = self.choose_axes()
            self.groups = groups(self.size.steps, self.size.layers * self.size.heads * partition.count**2)
            lanes = (max(self.groups) + 1, self.size.layers, self.size.heads)
            self.mass = torch.zeros(*lanes, partition.count, partition.count)
        order = torch.stack([axis_order(heard.grid, AXES[n]) for n in self.axes[heard.layer].tolist()])[None]
        q, k = gather_tokens((heard.q, heard.k), order.to(heard.q.device))
        mass = measure_block_mass(q, k, partition, partition, scale=heard.scale).sum(0)
        self.mass[self.groups[heard.tick.step], heard.layer] += mass.cpu()

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        section = {"by_step": True, "groups": self.groups, "block_size": self.size.block_size}
        section |= {"axes": [[AXES[n] for n in row] for row in self.axes.tolist()]}
        heard = self.mass.sum((2, 3, 4)) > 0
        kept = self.kept / self.heard.clamp_min(1)[:, None]
        arrays = {"axes": self.axes, "order_kept": kept, "order_loss": self.paper_loss()}
        if self.mass.numel() <= MOST_MASS_BYTES:
            return section, arrays | {"mass": fill_groups(encode_mass(self.mass), heard)}
        partition = Partition(self.grid.tokens, self.size.block_size)
        sizes = partition.sizes()
        for sparsity in SPARSITIES:  # a layer at a time: a sort needs several times its input
            force = always_kept(self.grid, partition, 1 - sparsity)
            kept = [
                [pack(spend(mass[None], sizes, sizes, 1 - sparsity, scope="layer", force=force)[0]) for mass in group]
                for group in self.mass
            ]
            arrays[f"keep.{sparsity}"] = fill_groups(torch.stack([torch.stack(layers) for layers in kept]), heard)
        return section | {"sparsities": list(SPARSITIES)}, arrays


def groups(steps: int, blocks: int) -> list[int]:
    """The group of each step. ``blocks``: block pairs over all layers and heads, which a group takes bytes for."""
    half = steps // 2
    if (half + 1) * blocks <= MOST_MASS_BYTES:
        return [min(step, half) for step in range(steps)]
    return [step * FEW_GROUPS // steps for step in range(steps)] if steps >= FEW_GROUPS else list(range(steps))
