"""Block masses as profiles keep them, a byte a block, and blocks that no mask drops."""

from __future__ import annotations

import torch

from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.upload import upload
from dittools.selection.areas import areas_of
from dittools.tokens import TokenGrid

OCTAVES = 20
"""What a byte covers below its largest value; finer steps of 6 % do not change which blocks are kept."""


def encode_mass(mass: torch.Tensor) -> torch.Tensor:
    """Attention mass of blocks as bytes, by their logarithm.

    Args:
        mass: ``[..., M, M]``, sums of softmax weights over (query block, key block), in any unit.

    Returns:
        uint8 ``[..., M, M]``: 0 holds nothing or next to it, 255 a row block's whole mass in one key block.
    """
    share = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return ((share.log2() / OCTAVES + 1) * 255).round().clamp(0, 255).nan_to_num(0).to(torch.uint8)


def decode_mass(codes: torch.Tensor, partition: Partition) -> torch.Tensor:
    """The masses that bytes stand for: fp32 ``[..., M, M]``; a row block holds as much as it has queries."""
    share = torch.exp2((codes.float() / 255 - 1) * OCTAVES).masked_fill(codes == 0, 0)
    share = share / share.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return share * partition.sizes(codes.device)[:, None]


def pool_mass(mass: torch.Tensor, factor: int) -> torch.Tensor:
    """Masses of blocks ``factor`` times as long: exact sums, the ragged end included."""
    if factor == 1:
        return mass
    missing = -mass.shape[-1] % factor
    mass = torch.nn.functional.pad(mass, (0, missing, 0, missing))
    count = mass.shape[-1] // factor
    return mass.unflatten(-1, (count, factor)).sum(-1).unflatten(-2, (count, factor)).sum(-2)


def always_kept(grid: TokenGrid, partition: Partition, density: float = 1.0) -> torch.Tensor:
    """Blocks that no mask drops: rows and columns of text, and of the last block where it is ragged.

    A ragged tail that would take more than half of the budget ``density``, on a grid of few blocks, is left to the
    budget like any other block.

    Returns:
        bool ``[M, M]``. Holds for every order that leaves text in its place.
    """
    held = torch.zeros(partition.count, dtype=torch.bool)
    held[torch.arange(grid.tokens)[grid.stays_dense()] // partition.size] = True
    last = areas_of(grid, partition.size)[-1].tokens.sum()
    if partition.tail < partition.size and 4 * partition.tail <= density * last:
        held[-1] = True
    return held[:, None] | held


def with_other_text(keep: torch.Tensor, grid: TokenGrid, partition: Partition) -> torch.Tensor:
    """Kept blocks ``[..., M, M]`` of a sequence as those of ``grid``, which has longer or shorter text behind it."""
    more = max(0, partition.count - keep.shape[-1])
    keep = torch.nn.functional.pad(keep[..., : partition.count, : partition.count], (0, more, 0, more), value=True)
    return keep | upload(always_kept(grid, partition, 0.0), keep.device)  # what was a tail may hold text now


def pool_columns(columns: torch.Tensor, stored: int, wanted: int, name: str) -> torch.Tensor:
    """Sums over key blocks of ``stored`` tokens ``[..., M]`` as sums over blocks of ``wanted`` tokens.

    Raises:
        ValueError: when one block size does not divide the other; ``name`` is the profile's.
    """
    factor, rest = divmod(wanted, stored)
    if rest:
        raise ValueError(f"{name} has blocks of {stored}, and this run has {wanted}: use block_size {stored}")
    columns = torch.nn.functional.pad(columns, (0, -columns.shape[-1] % factor))
    return columns.unflatten(-1, (-1, factor)).sum(-1)
