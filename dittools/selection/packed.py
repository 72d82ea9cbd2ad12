"""Block masks at one bit a block, for what is kept from step to step and in profiles."""

from __future__ import annotations

import torch


def pack_bits(keep: torch.Tensor) -> torch.Tensor:
    """Bool ``[..., N]`` -> uint8 ``[..., ceil(N / 8)]``, an eighth of the bytes; the first column is the lowest bit."""
    bits = torch.nn.functional.pad(keep.to(torch.uint8), (0, -keep.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (bits << _shifts(keep.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: torch.Tensor, length: int) -> torch.Tensor:
    """The inverse of `pack_bits`: bool ``[..., length]``."""
    return ((packed[..., None] >> _shifts(packed.device)) & 1).bool().flatten(-2)[..., :length].contiguous()


def _shifts(device: torch.device) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
