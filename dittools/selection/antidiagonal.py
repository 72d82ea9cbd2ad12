"""Blocks scored by antidiagonals: a strided sample that meets every query and every key of a block.

Source: XAttention (arXiv 2503.16428).
"""

from __future__ import annotations

import torch

from dittools.kernels.antidiagonal.dispatch import measure_antidiagonals
from dittools.selection.ordered_blocks import OrderedBlocks


def antidiagonal_mass(
    q: torch.Tensor, k: torch.Tensor, blocks: OrderedBlocks, scale: float, stride: int
) -> torch.Tensor:
    """Share of each key block in the softmax over antidiagonals, mean over the rows of a query block.

    Args:
        q, k: ``[B, S, H, D]``.
        blocks: of queries and keys alike, in their order, of a size that ``stride`` divides.
        scale: factor on the logits.
        stride: tokens between antidiagonals.

    Returns:
        fp32 ``[B, H, M, M]``, rows sum to 1. `dittools.kernels.antidiagonal.dispatch` has the formula, and holds little
        at a time.
    """
    return measure_antidiagonals(q, k, blocks.partition, stride, scale=scale, order=blocks.order)
