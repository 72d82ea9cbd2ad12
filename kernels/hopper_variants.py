"""How the Hopper kernel for blocks runs: its variants, and which of them is the default of a call.

The defaults are the fastest of what `dittools.bench.tune_hopper` found right and timed on an H200.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """How the kernel runs; every variant computes the same.

    Args:
        stages: slots in the rings of K and of V. At head dim 128, 3 of 128 keys fill the shared memory, and 3 of 64
            keys the half of it that a tile of 64 rows has.
        overlap: run the softmax of one slot while the tensor cores multiply the weights of the slot before.
        persistent: one program a multiprocessor, drawing tiles from a queue, instead of one program a tile. The
            next tile's copies then begin during the last one's end. Without an order the output needs room beside
            q: see `tile_bytes`.
        pin: with overlap, keep the assembler from moving the wait for the tensor cores ahead of the softmax. Where it
            may, the two consumers overlap one another instead.
        slot: keys in a slot of the rings, 64 or 128.
        hold: keep q in registers, so that the tensor cores need not read it from shared memory for every slot.
    """

    stages: int = 2
    overlap: bool = True
    persistent: bool = False
    pin: bool = True
    slot: int = 128
    hold: bool = False


# By rows of a tile and head dim, without an order and with one.
RASTER = {
    (128, 128): Variant(stages=2, hold=True, pin=False, persistent=True),
    (128, 64): Variant(stages=2, hold=True, pin=False, persistent=True),
    # For 64 keys at head dim 128 the tensor cores take 512 cycles, and the ports of shared memory 256 for what TMA
    # writes and 256 for K and V as they are read; reading q as well would take 128 more.
    (64, 128): Variant(stages=2, slot=64, hold=True, pin=False, persistent=True),
    (64, 64): Variant(stages=3, hold=True),
}
ORDERED = {
    (128, 128): Variant(stages=2, hold=True, pin=False, persistent=True),
    (128, 64): Variant(stages=2, hold=True, pin=False, persistent=True),
    (64, 128): Variant(stages=3, slot=64, hold=True, pin=False, persistent=True),
    (64, 64): Variant(stages=3, hold=True),
}


def default_variant(head_dim: int, query_block: int = 128, ordered: bool = False) -> Variant:
    """The variant that runs when none is asked for."""
    return (ORDERED if ordered else RASTER)[query_block, head_dim]


def tile_bytes(variant: Variant, head_dim: int, query_block: int, ordered: bool = False) -> int:
    """Shared memory that q, the output, and the rings of a program take, without barriers."""
    outputs = variant.persistent and not ordered  # else the output leaves through what q no longer needs
    return 2 * head_dim * (query_block * (1 + outputs) + 2 * variant.stages * variant.slot)
