"""Blocks scored by the softmax mass they hold: exactly, or on a sample of each block's queries."""

from __future__ import annotations

import torch

from dittools.blocks import Partition
from dittools.kernels.block_mass import measure_block_mass, measure_lse
from dittools.selectors.in_order import over_heads
from dittools.selectors.layout import Layout


def block_mass(
    q: torch.Tensor, k: torch.Tensor, layout: Layout, scale: float, *, lse: torch.Tensor | None = None, rows: int = 0
) -> torch.Tensor:
    """Mean over the queries of each block of the softmax mass in each key block.

    Args:
        q, k: ``[B, S, H, D]``.
        layout: order and blocks.
        scale: factor on the logits.
        lse: fp32 ``[B, H, S]`` in the layout's order, from `row_lse`, perhaps of an earlier step: spares one of two
            passes over the logits. Not used with ``rows``.
        rows: queries looked at in each block, evenly spaced; 0 looks at all. 16 and up have a kernel on a GPU.

    Returns:
        fp32 ``[B, H, M, M]``. Rows sum to 1 (with an old ``lse`` nearly so). Nothing of size S x S is held; in an
        order, `in_order.CHUNK_BYTES` bounds the copies.
    """
    blocks = layout.partition
    if not rows:

        def measure(heads, queries, keys):
            known = None if lse is None else lse[:, heads]
            return measure_block_mass(queries, keys, blocks, blocks, scale=scale, lse=known)

        return over_heads(measure, [q, k], layout.order) / layout.sizes[:, None]

    positions = sampled_positions(layout, rows)  # [M * rows]
    tokens = positions if layout.order is None else layout.order[0, 0].index_select(0, positions)
    sample = q.index_select(1, tokens)
    sampled = Partition(sample.shape[1], rows)

    def measure_sample(heads, keys):
        return measure_block_mass(sample[:, :, heads], keys, sampled, blocks, scale=scale)

    return over_heads(measure_sample, [k], layout.order) / rows


def row_lse(q: torch.Tensor, k: torch.Tensor, layout: Layout, scale: float) -> torch.Tensor:
    """Log-sum-exp of every query's logits, in the layout's order: fp32 ``[B, H, S]``, natural log."""
    return over_heads(lambda _, queries, keys: measure_lse(queries, keys, scale=scale), [q, k], layout.order)


def sampled_positions(layout: Layout, rows: int) -> torch.Tensor:
    """``rows`` evenly spaced positions of each block: int64 ``[M * rows]``; short blocks repeat some."""
    within = (torch.arange(rows, device=layout.sizes.device) + 0.5) / rows
    starts = torch.arange(layout.partition.count, device=layout.sizes.device) * layout.partition.size
    return (starts[:, None] + (layout.sizes[:, None] * within).long()).flatten()
