"""Kept blocks as index lists, the form in which kernels walk them."""

from __future__ import annotations

import torch


def block_lists(keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a boolean block mask into lists of kept key blocks.

    Args:
        keep: bool ``[..., Mq, Nk]``.

    Returns:
        counts int32 ``[..., Mq]``, and indices int32 ``[..., Mq, Nk]``, ascending up to the count, 0 after.
        Both are made on the mask's device without a host sync.
    """
    running = keep.cumsum(-1, dtype=torch.int32)  # [..., Mq, Nk]
    counts = running[..., -1].contiguous()
    columns = torch.arange(keep.shape[-1], dtype=torch.int32, device=keep.device)
    # Skipped blocks all land in one spare slot: a scatter costs one pass where a sort costs many.
    slots = torch.where(keep, running - 1, keep.shape[-1]).long()
    indices = torch.zeros(*keep.shape[:-1], keep.shape[-1] + 1, dtype=torch.int32, device=keep.device)
    indices.scatter_(-1, slots, columns.expand(keep.shape))
    return counts, indices[..., :-1].contiguous()
