"""How alike the tokens of a block are: whether one pooled vector can speak for them.

Source: SpargeAttn (arXiv 2502.18137).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from dittools.kernels.pooling import pool_blocks
from dittools.selectors.in_order import over_heads
from dittools.selectors.layout import Layout


def self_similarity(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Mean cosine of all pairs of tokens in each block: ``[B, S, H, D]`` -> fp32 ``[B, H, M]``, up to 1.

    The mean over all pairs of unit vectors is the squared length of their mean, so no Gram matrix is needed. Each
    block, the ragged one too, counts the tokens it has. Copies are bounded by `in_order.CHUNK_BYTES`.
    """

    def measure(_, part):
        mean = pool_blocks(F.normalize(part, dim=-1), layout.partition)  # [B, M, h, D]
        return mean.square().sum(-1).transpose(1, 2)

    return over_heads(measure, [x], layout.order, copies=1)
