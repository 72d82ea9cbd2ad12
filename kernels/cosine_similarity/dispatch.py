"""How alike the tokens of each run of positions are, and their mean, in one pass."""

from __future__ import annotations

import torch

from dittools.kernels.choice import picks_triton
from dittools.kernels.segment_mean.dispatch import segment_means


def intra_block_cosine_similarity(
    x: torch.Tensor, order: torch.Tensor | None, offsets: torch.Tensor, *, implementation: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean vector of every run, and the mean cosine of all pairs of its tokens, each with itself included.

    The mean over all pairs of unit vectors is the squared length of their mean, so no Gram matrix is needed.

    Args:
        x: ``[B, S, H, D]``, any strides.
        order, offsets: as `dittools.kernels.segment_means` takes them. A run is one loop: they should not be
            very long.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        (means fp32 ``[B, H, N, D]``, likeness fp32 ``[B, H, N]``); 0 where a run is empty.
    """
    if picks_triton(implementation, x):
        from dittools.kernels.cosine_similarity.triton import triton_intra_block_cosine_similarity

        return triton_intra_block_cosine_similarity(x, order, offsets)
    means = segment_means(x, order, offsets, implementation="portable")
    # Head by head, so that no more than one is widened at a time.
    of_heads = []
    for h in range(x.shape[2]):
        of = slice(h, h + 1)
        lanes = [t if t is None or t.shape[1] == 1 else t[:, of] for t in (order, offsets)]
        unit = torch.nn.functional.normalize(x[:, :, of].float(), dim=-1)
        of_heads.append(segment_means(unit, *lanes, implementation="portable").square().sum(-1))
    return means, torch.cat(of_heads, 1)
