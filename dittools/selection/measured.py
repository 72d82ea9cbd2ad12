"""Blocks scored by the softmax mass they hold: exactly, or on a sample of each block's queries."""

from __future__ import annotations

import torch

from dittools.kernels.block_mass.dispatch import measure_block_mass, measure_lse
from dittools.kernels.masks.block_mask import Partition
from dittools.selection.in_order import over_heads
from dittools.selection.ordered_blocks import OrderedBlocks

# Rows of blocks whose masses say so much more or less than they did no longer tell how heads compare. From one search
# to the next of an ordinary run single ones grow by up to some hundreds, which leaves the order within a row as it is.
OUTGROWN = 1000.0


def block_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    blocks: OrderedBlocks,
    scale: float,
    *,
    lse: torch.Tensor | None = None,
    rows: int = 0,
) -> torch.Tensor:
    """Mean over the queries of each block of the softmax mass in each key block.

    Args:
        q, k: ``[B, S, H, D]``.
        blocks: of queries and keys alike, in their order.
        scale: factor on the logits.
        lse: fp32 ``[B, H, S]`` in the blocks' order, from `row_lse`, perhaps of an earlier step: spares one of two
            passes over the logits. Not used with ``rows``.
        rows: queries looked at in each block, evenly spaced; 0 looks at all. 16 and up have a kernel on a GPU.

    Returns:
        fp32 ``[B, H, M, M]``. Rows sum to 1; with an old ``lse`` to what logits have grown by (`sums_to_one`), which
        may overflow. Nothing of size S x S is held; in an order, `in_order.CHUNK_BYTES` bounds the copies.
    """
    partition = blocks.partition
    if not rows:

        def measure(heads, queries, keys):
            known = None if lse is None else lse[:, heads]
            return measure_block_mass(queries, keys, partition, partition, scale=scale, lse=known)

        return over_heads(measure, [q, k], blocks.order) / blocks.sizes[:, None]

    positions = sampled_positions(blocks, rows)  # [M * rows]
    tokens = positions if blocks.order is None else blocks.order[0, 0].index_select(0, positions)
    sample = q.index_select(1, tokens)
    sampled = Partition(sample.shape[1], rows)

    def measure_sample(heads, keys):
        return measure_block_mass(sample[:, :, heads], keys, sampled, partition, scale=scale)

    return over_heads(measure_sample, [k], blocks.order) / rows


def sums_to_one(mass: torch.Tensor) -> bool:
    """Whether the rows of `block_mass` from an old log-sum-exp still sum to one, within a factor of `OUTGROWN`.

    Waits for the device.
    """
    total = mass.sum(-1)
    return ((total > 1 / OUTGROWN) & (total < OUTGROWN)).all().item()


def row_lse(q: torch.Tensor, k: torch.Tensor, blocks: OrderedBlocks, scale: float) -> torch.Tensor:
    """Log-sum-exp of every query's logits, in the blocks' order: fp32 ``[B, H, S]``, natural log."""
    return over_heads(lambda _, queries, keys: measure_lse(queries, keys, scale=scale), [q, k], blocks.order)


def sampled_positions(blocks: OrderedBlocks, rows: int) -> torch.Tensor:
    """``rows`` evenly spaced positions of each block: int64 ``[M * rows]``; short blocks repeat some."""
    within = (torch.arange(rows, device=blocks.sizes.device) + 0.5) / rows
    starts = torch.arange(blocks.partition.count, device=blocks.sizes.device) * blocks.partition.size
    return (starts[:, None] + (blocks.sizes[:, None] * within).long()).flatten()
