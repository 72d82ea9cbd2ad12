"""PAROAttention's calibration: the order of every head, then the mass of its blocks by group of steps.

Source: arXiv 2506.16054. A group is one step in the first half of the run, and the whole second half (section 4.3).
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.calibrate.base import Calibrator, Size, fill_groups, spread_steps
from dittools.calibrate.block_statistics import block_statistics, incoherence, kept_share, order_loss, sparse_share
from dittools.calibrate.mass_sums import MassSums
from dittools.kernels import gather_tokens, measure_block_mass
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.upload import upload
from dittools.observer import AttentionEvent
from dittools.orders.axes import AXES, axis_order
from dittools.selection.areas import areas_of
from dittools.selection.budget import select_topk_blocks_by_area
from dittools.selection.in_order import CHUNK_BYTES
from dittools.selection.packed import pack_bits
from dittools.selection.profiled import always_kept, encode_mass

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
        self.event = torch.zeros(size.layers)
        self.orders: torch.Tensor | None = None  # int32 [orders, S]
        self.scores: torch.Tensor | None = None  # sparse, quant and kept, [3, orders, layers, H]
        self.block_size = size.block_size
        self.axes: torch.Tensor | None = None
        self.mass: MassSums | None = None

    def observe(self, event: AttentionEvent, round: int) -> None:
        device = event.q.device
        if event.grid != self.grid:
            self.grid = event.grid
            self.orders = torch.stack([axis_order(event.grid, axes) for axes in AXES]).to(device)
            self.block_size = mass_blocks(self.size, event.grid.tokens, device)
        if self.scores is None:
            self.scores = torch.zeros(3, len(AXES), self.size.layers, self.size.heads, device=device)
        if round:
            self._add_mass(event)
        elif event.step_info.step in self.steps:
            self._score_orders(event)

    def _score_orders(self, event: AttentionEvent) -> None:
        partition = Partition(event.grid.tokens, self.size.block_size)
        blocks = spread_steps(partition.count, self.sampled_blocks)
        sizes = partition.sizes()
        weights = upload((sizes[blocks][:, None] * sizes).float(), event.q.device)  # in each block, [n, M]
        found = block_statistics(event.q, event.k, self.orders, partition, blocks, event.scale, EPS / event.grid.tokens)
        scores = sparse_share(found, SIGMA), incoherence(found, weights), kept_share(found, KEPT)
        self.scores[:, :, event.layer] += torch.stack(scores)
        self.event[event.layer] += 1

    def choose_axes(self) -> torch.Tensor:
        """The order of every head, in which the heaviest blocks hold most: uint8 ``[layers, heads]``.

        The paper's own score counts small weights instead. With its sign put right it still kept clearly less mass on
        the embedded model, at every eps tried: it is written to the profile for comparison, and not used.
        """
        return self.scores[2].argmax(0).to(torch.uint8)

    def _mean_scores(self) -> torch.Tensor:
        return self.scores.cpu() / self.event.clamp_min(1)[:, None]

    def paper_loss(self) -> torch.Tensor:
        """The paper's score of every order, of which the least is best: ``[orders, layers, heads]``, on the CPU."""
        sparse, quant, _ = self._mean_scores()
        return order_loss(sparse, quant, ALPHA)

    def _add_mass(self, event: AttentionEvent) -> None:
        partition = Partition(event.grid.tokens, self.block_size)
        heads = event.q.shape[2]
        if self.axes is None:
            self.axes = self.choose_axes()  # on the device, [layers, H]
            self.groups = groups(self.size.steps, self.size.layers * self.size.heads * partition.count**2)
            self.mass = MassSums(max(self.groups) + 1, self.size.layers, heads, partition.count, event.q.device)
        order = self.orders.index_select(0, self.axes[event.layer].int())[None]  # [1, H, S]
        found = torch.empty(heads, partition.count, partition.count, device=event.q.device)
        each = 2 * event.q[:, :, :1].numel() * event.q.element_size()  # copies of q and k of one head
        some = max(1, min(heads, CHUNK_BYTES // each))
        for first in range(0, heads, some):
            of = slice(first, first + some)
            q, k = gather_tokens((event.q[:, :, of], event.k[:, :, of]), order[:, of])
            found[of] = measure_block_mass(q, k, partition, partition, scale=event.scale, passes=1).sum(0)
        self.mass.add(self.groups[event.step_info.step], event.layer, found)

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        sums, measured, axes = self.mass.sums(), self.mass.measured(), self.axes.cpu()
        section = {"by_step": True, "groups": self.groups, "block_size": self.block_size}
        section |= {"measured_steps": list(range(self.size.steps)), "order_steps": self.steps}
        section |= {"axes": [[AXES[n] for n in row] for row in axes.tolist()]}
        arrays = {"axes": axes, "order_kept": self._mean_scores()[2], "order_loss": self.paper_loss()}
        if sums.numel() <= MOST_MASS_BYTES:
            return section, arrays | {"mass": fill_groups(encode_mass(sums).cpu(), measured)}
        partition, device = Partition(self.grid.tokens, self.block_size), self.orders.device
        sizes = partition.sizes(device)
        areas, width = areas_of(self.grid, self.block_size), -(-partition.count // 8)
        for sparsity in SPARSITIES:
            force = always_kept(self.grid, partition, 1 - sparsity).to(device)
            bits = torch.empty(*sums.shape[:-1], width, dtype=torch.uint8)
            for group, layers in enumerate(sums):  # a layer at a time: a sort needs several times its input
                for layer, mass in enumerate(layers):
                    mass = mass[None].to(device)
                    kept = select_topk_blocks_by_area(mass, sizes, areas, 1 - sparsity, scope="layer", force=force)
                    bits[group, layer] = pack_bits(kept[0]).cpu()
            arrays[f"keep.{sparsity}"] = fill_groups(bits, measured)
        return section | {"sparsities": list(SPARSITIES)}, arrays


def mass_blocks(size: Size, tokens: int, device: torch.device) -> int:
    """Tokens in a block of masses: 128 on CUDA where masses of smaller ones would not fit.

    Masks in bits serve one block size, and there runs have 128 by default; masses pool to larger blocks.
    """
    blocks = size.layers * size.heads * Partition(tokens, size.block_size).count ** 2
    few = max(groups(size.steps, blocks)) + 1
    return max(size.block_size, 128) if device.type == "cuda" and few * blocks > MOST_MASS_BYTES else size.block_size


def groups(steps: int, blocks: int) -> list[int]:
    """The group of each step. ``blocks``: block pairs over all layers and heads, which a group takes bytes for."""
    half = steps // 2
    if (half + 1) * blocks <= MOST_MASS_BYTES:
        return [min(step, half) for step in range(steps)]
    return [step * FEW_GROUPS // steps for step in range(steps)] if steps >= FEW_GROUPS else list(range(steps))
