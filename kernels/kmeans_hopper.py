"""The assignment of k-means for Hopper (compute capability 9.x): when the kernel can run, and its launch.

The kernel is `kmeans_hopper_forward.py`, which needs Triton with Gluon; importing this file does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dittools.kernels.hopper import REGISTERS, SLOT, _readable, why_not_hopper

TILE = 256


@dataclass(frozen=True)
class HopperVariant:
    """How the kernel runs; every variant computes the same.

    Args:
        stages: slots of 128 centroids in the ring. At head dim 128, 3 fill the shared memory beside two tiles of
            points, and 5 beside one.
        buffers: tiles of points that there is room for; with two, the next one is copied while one is compared.
        turn: slots between two moments without a product under way.
    """

    stages: int = 3
    buffers: int = 2
    turn: int = 4


def default_variant(slots: int) -> HopperVariant:
    """The variant that runs when none is asked for: of turns of up to 4 slots, the length that takes the fewest."""
    return HopperVariant(turn=min((1, 2, 3, 4), key=lambda turn: slots // turn + slots % turn))


def why_not_hopper_kmeans(x: torch.Tensor) -> str | None:
    """None when the Hopper kernel can assign the points x ``[.., S, D]``, else why it cannot."""
    return why_not_hopper(x.device, x.dtype, x.shape[-1])


def hopper_assign(x: torch.Tensor, centroids: torch.Tensor, variant: HopperVariant | None = None) -> torch.Tensor:
    """Launch the assignment. Args and returns as `triton_assign`, with D in {64, 128}, fp16 or bf16."""
    from dittools.kernels.kmeans_hopper_forward import nearest_forward
    from dittools.kernels.kmeans_triton import round_centroids

    labels, programs, arguments, options = assign_arguments(x, *round_centroids(centroids, x.dtype, SLOT), variant)
    nearest_forward[(programs,)](*arguments, **options)
    return labels


def assign_arguments(
    x: torch.Tensor, rounded: torch.Tensor, half: torch.Tensor, variant: HopperVariant | None = None
) -> tuple[torch.Tensor, int, tuple, dict]:
    """(labels, programs, arguments, options) of a launch. The labels are allocated, not computed.

    Args:
        x: as `hopper_assign`. rounded ``[N, C', D]``, half ``[N, C']``: as `round_centroids` fills them up to `SLOT`.
    """
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    slots = rounded.shape[1] // SLOT
    variant = variant or default_variant(slots)
    x = x[:, None] if x.ndim == 3 else x
    batches, heads, points, dim = x.shape
    lanes = batches * heads
    labels = torch.empty(lanes, points, dtype=torch.int32, device=x.device)
    swizzled = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    read, strides = _readable(x.transpose(1, 2))
    tiles = -(-points // TILE)
    programs = all_tiles = tiles * lanes
    if x.device.type == "cuda":
        programs = min(programs, torch.cuda.get_device_properties(x.device).multi_processor_count)
    arguments = (
        TensorDescriptor(read, [batches, heads, points, dim], strides, [1, 1, 64, dim], swizzled),
        TensorDescriptor(rounded, [lanes, 1, slots * SLOT, dim], [slots * SLOT * dim, dim, dim, 1],
                         [1, 1, SLOT, dim], swizzled),
        half, labels, points, tiles, all_tiles, heads, slots,
    )  # fmt: skip
    options = {
        "D": dim,
        "BN": SLOT,
        "STAGES": variant.stages,
        "BUFFERS": variant.buffers,
        "TURN": variant.turn,
        "num_warps": 4,
        "maxnreg": REGISTERS,
    }
    return labels, programs, arguments, options
