"""Block masks that a model brings itself, made for PyTorch's flex attention, as masks of the sparse kernels."""

from __future__ import annotations

from typing import Any

import torch

from dittools.config import BLOCK_SIZES
from dittools.kernels.block_sparse.lists import to_keep
from dittools.kernels.masks.block_mask import BlockMask, Partition

OWN_MASK = "the model brings a block mask of its own"


def blocks_of(mask: Any, q: torch.Tensor, k: torch.Tensor) -> BlockMask | str:
    """The mask of a call, or why only flex attention can read it. Nothing waits for the device.

    Args:
        mask: a `torch.nn.attention.flex_attention.BlockMask`. q, k: ``[B, S, H, D]``.
    """
    rule = getattr(getattr(mask, "mask_mod", None), "__name__", None)
    if rule != "noop_mask":  # what blocks hold is decided pair by pair
        return f"{OWN_MASK} that cuts blocks by a rule, which only flex attention can read"
    rows, columns = mask.BLOCK_SIZE
    query, key = Partition(q.shape[1], rows), Partition(k.shape[1], columns)
    lists = [(mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)]
    lists = [each for each in lists if each[0] is not None]
    fits = all(
        counts.shape[-1] == query.count and counts.shape[0] in (1, q.shape[0]) and counts.shape[1] in (1, q.shape[2])
        for counts, _ in lists
    )
    if rows != columns or rows not in BLOCK_SIZES or not fits:
        return f"{OWN_MASK} of blocks of {rows} x {columns}, which no sparse kernel takes"
    keep = [to_keep(counts, indices, key.count) for counts, indices in lists]
    return BlockMask(keep[0] if len(keep) == 1 else keep[0] | keep[1], query, key)
