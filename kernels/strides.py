"""Strides as launches take them."""

from __future__ import annotations

import torch


def lane_strides(x: torch.Tensor | None) -> tuple[int, int]:
    """Strides over batch and head, 0 where all batches or heads share one entry."""
    if x is None:
        return 0, 0
    return tuple(0 if size == 1 else step for size, step in zip(x.shape[:2], x.stride()[:2], strict=True))
