"""How alike the tokens of a block are: whether one pooled vector can speak for them.

Source: SpargeAttn (arXiv 2502.18137).
"""

from __future__ import annotations

import torch

from dittools.kernels.cosine_similarity.dispatch import intra_block_cosine_similarity
from dittools.selection.in_order import over_heads
from dittools.selection.ordered_blocks import OrderedBlocks


def means_and_similarity(
    x: torch.Tensor, blocks: OrderedBlocks, *, centre: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """`dittools.selection.pooled.pool`, and the mean cosine of all pairs of tokens in each block, up to 1, in one pass.

    Fp32 ``[B, H, M, D]`` and ``[B, H, M]``. Each block, the ragged one too, counts the tokens it has.

    ``centre``: of x less the mean of all its tokens. Of that a copy is made, in fp32, a few heads at a time
    (`in_order.CHUNK_BYTES`).
    """
    if not centre:
        return intra_block_cosine_similarity(x, blocks.order, blocks.offsets)

    def one(_, part: torch.Tensor) -> torch.Tensor:
        part = part - part.mean(1, keepdim=True, dtype=torch.float32)
        means, similarity = intra_block_cosine_similarity(part, blocks.order, blocks.offsets)
        return torch.cat((means, similarity[..., None]), -1)

    found = over_heads(one, [x], None, copies=4 // x.element_size())
    return found[..., :-1], found[..., -1]
