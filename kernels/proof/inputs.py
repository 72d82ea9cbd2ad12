"""What kernels are measured on: random tensors, never zeros, and masks of a density."""

from __future__ import annotations

import torch

from dittools.kernels.masks.block_mask import BlockMask, Partition

FAMILIES = ("uniform", "ragged", "heavy head")
FRAMES = 21  # of an order that puts the same place of all frames side by side: Wan's 81 frames


def make_tensors(
    heads: int, tokens: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k, v ``[1, S, H, D]`` from the normal distribution, tokens first in memory, as models make them."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, tokens, heads, head_dim)
    return tuple(torch.randn(shape, device=device, dtype=dtype, generator=generator) for _ in range(3))


def heads_first(x: torch.Tensor) -> torch.Tensor:
    """The same ``[B, S, H, D]`` with each head contiguous in memory."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def make_mask(
    heads: int, tokens: int, query_block: int, key_block: int, density: float, family: str, device: torch.device
) -> BlockMask:
    """A random mask of which each head keeps the given share of key blocks.

    Args:
        family: "uniform": every row keeps equally many; "ragged": rows keep 0.2 to 1.8 times as many; "heavy head":
            the first head keeps three times as many as the others, with the density as the mean over heads.

    Raises:
        ValueError: for an unknown family.
    """
    if family not in FAMILIES:
        raise ValueError(f"unknown family {family!r}: use one of {', '.join(FAMILIES)}")
    generator = torch.Generator(device).manual_seed(1)
    query, key = Partition(tokens, query_block), Partition(tokens, key_block)
    share = torch.full((heads, query.count), density, device=device)
    if family == "ragged":
        share *= torch.rand(share.shape, device=device, generator=generator) * 1.6 + 0.2
    elif family == "heavy head":
        share *= heads / (heads + 2)
        share[0] *= 3
    counts = (share * key.count).round().clamp(1, key.count)
    keep = torch.empty(1, heads, query.count, key.count, dtype=torch.bool, device=device)
    for h in range(heads):  # the ranks of all heads at once would fill a small card
        noise = torch.rand(query.count, key.count, device=device, generator=generator)
        keep[0, h] = noise.argsort(-1).argsort(-1) < counts[h, :, None]
    return BlockMask(keep, query, key)


def make_order(heads: int, tokens: int, device: torch.device) -> torch.Tensor:
    """An order for each head, int32 ``[1, H, S]``: every other head puts the same place of all frames together."""
    token = torch.arange(tokens, device=device)
    frame = -(-tokens // FRAMES)
    together = (token % frame * FRAMES + token // frame).argsort(stable=True)
    temporal = torch.arange(heads, device=device) % 2 == 0
    return torch.where(temporal[:, None], together, token).int()[None]
