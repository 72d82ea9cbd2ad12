"""Log-sum-exp and measured block mass for Hopper (compute capability 9.x): when the kernel can run, and its launch.

The kernel is `hopper_mass_forward.py`, which needs Triton with Gluon; importing this file does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dittools.kernels.hopper import REGISTERS, SLOT, _readable, why_not_hopper

BLOCKS = (64, 128)
TILE = 256


@dataclass(frozen=True)
class Variant:
    """How the kernel runs; every variant computes the same.

    Args:
        stages: slots of 128 keys in the ring of K, at most 5 at head dim 128.
        turn: slots between two moments without a product under way, 1, 2 or 4.
        mixed: a quarter of the exponentials as polynomials, off by 3e-6 of themselves, beside those of the special
            function unit, which has as much to do as the tensor cores. A logit that is NaN may go unseen.
    """

    stages: int = 4
    turn: int = 4
    mixed: bool = False


def why_not_hopper_mass(q: torch.Tensor, query_block: int = TILE // 2, key_block: int = SLOT) -> str | None:
    """None when the Hopper kernel can measure q ``[B, S, H, D]`` in these blocks, else why it cannot."""
    reason = why_not_hopper(q.device, q.dtype, q.shape[-1])
    if reason is None and not {query_block, key_block} <= set(BLOCKS):
        reason = f"needs blocks of 64 or 128, got {query_block} and {key_block}"
    return reason


def hopper_block_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    query,
    key,
    scale: float,
    lse: torch.Tensor | None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """Launch the passes. Args and returns as `dittools.kernels.measure_block_mass`, already validated, with D in
    {64, 128}, fp16 or bf16, and blocks of 64 or 128. ``variant``: how to run, the defaults when None.
    """
    from dittools.kernels.hopper_mass_forward import block_mass_forward

    if lse is None:
        lse = hopper_lse(q, k, scale, variant)
    mass, programs, arguments, options = mass_arguments(q, k, query, key, scale, lse, variant)
    block_mass_forward[(programs,)](*arguments, **options)
    return mass


def hopper_lse(q: torch.Tensor, k: torch.Tensor, scale: float, variant: Variant | None = None) -> torch.Tensor:
    """The first pass alone. Args and returns as `dittools.kernels.block_mass.measure_lse`, already validated."""
    from dittools.kernels.block_mass_triton import repair_lse
    from dittools.kernels.hopper_mass_forward import block_mass_forward

    lse, programs, arguments, options = lse_arguments(q, k, scale, variant)
    block_mass_forward[(programs,)](*arguments, **options)
    repair_lse(q, k, lse, scale)
    return lse


def lse_arguments(q, k, scale: float, variant: Variant | None = None):
    """(lse, programs, arguments, options) of the LSE pass. The result is allocated, not computed."""
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)
    return lse, *_launch(q, k, lse, lse, scale, variant, 0, 0, {"QUERY_BLOCK": SLOT, "KEY_BLOCK": SLOT, "MASS": False})


def mass_arguments(q, k, query, key, scale: float, lse: torch.Tensor, variant: Variant | None = None):
    """(mass, programs, arguments, options) of the mass pass. The result is allocated, not computed."""
    mass = torch.empty(q.shape[0], q.shape[2], query.count, key.count, dtype=torch.float32, device=q.device)
    blocks = {"QUERY_BLOCK": query.size, "KEY_BLOCK": key.size, "MASS": True}
    return mass, *_launch(q, k, lse, mass, scale, variant, query.count, key.count, blocks)


def _launch(q, k, lse, mass, scale, variant: Variant | None, query_blocks: int, key_blocks: int, options: dict):
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batches, queries, heads, dim = q.shape
    variant = variant or Variant()
    swizzled = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)

    def descriptor(x: torch.Tensor, rows: int):
        x, strides = _readable(x)
        return TensorDescriptor(x, [x.shape[0], x.shape[2], x.shape[1], dim], strides, [1, 1, rows, dim], swizzled)

    tiles = -(-queries // TILE)
    arguments = (
        descriptor(q, 64), descriptor(k, SLOT), lse, mass, scale, queries, k.shape[1], heads, tiles,
        query_blocks, key_blocks, *lse.stride(),
    )  # fmt: skip
    options = {
        **options,
        "D": dim,
        "BN": SLOT,
        "STAGES": variant.stages,
        "TURN": variant.turn,
        "MIXED": variant.mixed,
        "num_warps": 4,
        "maxnreg": REGISTERS,
    }
    return tiles * batches * heads, arguments, options
