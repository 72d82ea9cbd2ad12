"""Walking q and k in an order a few heads at a time, so that no whole copy of them is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dittools.kernels.permute.dispatch import gather_tokens
from dittools.parts import part

# Largest copy of q and k that a selector makes at a time.
CHUNK_BYTES = 256 << 20


def over_heads(
    compute: Callable[..., torch.Tensor],
    tensors: Sequence[torch.Tensor],
    order: torch.Tensor | None,
    *,
    copies: int = 0,
) -> torch.Tensor:
    """``compute`` on chunks of heads, their tokens in the order, joined along the heads.

    Args:
        compute: takes the slice of heads and the tensors ``[B, S, h, D]`` in the order, gives ``[B, h, ...]``.
        tensors: ``[B, S, H, D]`` of one shape, any strides.
        order: int32 ``[B or 1, 1, S]``, or None: then nothing is gathered.
        copies: copies of its tensors that ``compute`` itself makes. They count into `CHUNK_BYTES`, the bound of what
            is held at a time; one head is the least. With no copy at all, all heads go at once.

    Returns:
        ``[B, H, ...]``.
    """
    heads = tensors[0].shape[2]
    copies += order is not None
    each = copies * sum(x.numel() * x.element_size() for x in tensors) // heads  # bytes
    step = max(1, min(heads, CHUNK_BYTES // each)) if copies else heads
    parts = []
    for first in range(0, heads, step):
        of = slice(first, min(first + step, heads))
        chunk = [x[:, :, of] for x in tensors]
        if order is not None:
            with part("permute"):
                chunk = gather_tokens(chunk, order)
        parts.append(compute(of, *chunk))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)
