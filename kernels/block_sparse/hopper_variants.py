"""How the Hopper kernel for blocks runs: the fastest of what was tried on an H200, by rows, head dim and order.

`docs/performance.md` says what else was tried, and what each of those gave.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """How the kernel runs; every variant computes the same.

    Args:
        stages: slots in the rings of K and of V. At head dim 128, 3 of 128 keys fill the shared memory, and 3 of 64
            keys the half of it that a tile of 64 rows has.
        slot: keys in a slot of the rings, 64 or 128.
        persistent: one program a multiprocessor, drawing tiles from a queue, instead of one program a tile. The
            next tile's copies then begin during the last one's end. Without an order the output needs room beside
            q: see `tile_bytes`.
    """

    stages: int
    slot: int
    persistent: bool


# By rows of a tile and head dim, without an order and with one.
RASTER = {
    (128, 128): Variant(stages=2, slot=128, persistent=True),
    (128, 64): Variant(stages=2, slot=128, persistent=True),
    # For 64 keys at head dim 128 the tensor cores take 512 cycles, and the ports of shared memory 256 for what TMA
    # writes and 256 for K and V as they are read; reading q as well would take 128 more.
    (64, 128): Variant(stages=2, slot=64, persistent=True),
    (64, 64): Variant(stages=3, slot=128, persistent=False),
}
ORDERED = {**RASTER, (64, 128): Variant(stages=3, slot=64, persistent=True)}


def variant_of(head_dim: int, query_block: int = 128, ordered: bool = False) -> Variant:
    """How calls of this kind run."""
    return (ORDERED if ordered else RASTER)[query_block, head_dim]


def tile_bytes(head_dim: int, query_block: int, ordered: bool = False) -> int:
    """Shared memory that q, the output, and the rings of a program take, without barriers."""
    variant = variant_of(head_dim, query_block, ordered)
    outputs = variant.persistent and not ordered  # else the output leaves through what q no longer needs
    return 2 * head_dim * (query_block * (1 + outputs) + 2 * variant.stages * variant.slot)
