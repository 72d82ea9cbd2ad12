"""The keys of a sample side by side, in the columns where the Hopper kernel wants them.

A thread of a warpgroup holds columns 8 i + 2 q + {0, 1} of a product, q its place among four lanes. So that it has to
ask about few blocks, the keys of one block go to the columns of one q: of four blocks, 4 PER keys, each has its own.
Where a slot holds fewer than four blocks, or one key of each, keys stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dittools.kernels.choice import picks_triton

if TYPE_CHECKING:
    from dittools.kernels.block_sparse.sample import Sample


def numbers(slot: int, per: int) -> torch.Tensor:
    """Which key of its slot stands in each column: int64 ``[slot]``. `hopper_forward` has the same rule."""
    column = torch.arange(slot)
    if not interleaved(slot, per):
        return column
    block = column // (4 * per) * 4 + column % 8 // 2
    return block * per + column % (4 * per) // 8 * 2 + column % 2


def interleaved(slot: int, per: int) -> bool:
    """Whether keys of a slot change places."""
    return 1 < per <= slot // 4


def sample_tiles(k: torch.Tensor, v: torch.Tensor, sample: Sample, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies of the keys and values of a sample, draw after draw.

    Args:
        k, v: ``[B, S, H, D]``, in the order of the call.
        slot: keys in a slot of the kernel's rings.

    Returns:
        ``[B, draws * n, H, D]`` each, n the next multiple of the slot; past the end of a draw its last key comes again.
    """
    if picks_triton(None, k, v):
        from dittools.kernels.block_sparse.sample_tiles_triton import triton_sample_tiles

        return triton_sample_tiles(k, v, sample.positions, slot, sample.per, interleaved(slot, sample.per))
    count = sample.positions.shape[1]
    first = torch.arange(0, count, slot, device=k.device)[:, None]
    number = (first + numbers(slot, sample.per).to(k.device)).flatten().clamp_max(count - 1)
    positions = sample.positions[:, number].flatten()
    return k.index_select(1, positions), v.index_select(1, positions)


def slots_of(sample: Sample, slot: int) -> int:
    """Slots of each draw."""
    return -(-sample.positions.shape[1] // slot)
