"""Runs of clusters as flat lists, made on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def unroll(numbers: torch.Tensor, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Item by item what ``numbers`` ``[.., M]`` counts: ``[.., slots]`` of index (M past the end) and rank in it."""
    ends = numbers.cumsum(-1, dtype=torch.int32)
    slot = torch.arange(slots, dtype=torch.int32, device=numbers.device).expand(*numbers.shape[:2], -1)
    index = torch.searchsorted(ends, slot.contiguous(), right=True)
    begin = F.pad(ends, (1, 0)).gather(-1, index)
    return index, slot - begin
