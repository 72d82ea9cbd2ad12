"""Log-sum-exp and measured block mass for Hopper (compute capability 9.x): when the kernel can run, and its launch.

The kernel is `hopper_mass_forward.py`, which needs Triton with Gluon; importing this file does not.
"""

from __future__ import annotations

import torch

from dittools.kernels.hopper_launch import REGISTERS, SLOT, tma_readable

TILE = 256
STAGES = 4  # slots of 128 keys in the ring of K
TURN = 4  # slots between two moments without a product under way


def hopper_block_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    query,
    key,
    scale: float,
    lse: torch.Tensor | None,
) -> torch.Tensor:
    """Launch the passes. Args and returns as `dittools.kernels.measure_block_mass`, already validated, with D in
    {64, 128}, fp16 or bf16, and blocks of 64 or 128.
    """
    from dittools.kernels.block_mass.hopper_forward import block_mass_forward

    if lse is None:
        lse = hopper_lse(q, k, scale)
    mass, programs, arguments, options = mass_arguments(q, k, query, key, scale, lse)
    block_mass_forward[(programs,)](*arguments, **options)
    return mass


def hopper_lse(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """The first pass alone. Args and returns as `dittools.kernels.measure_lse`, already validated."""
    from dittools.kernels.block_mass.hopper_forward import block_mass_forward
    from dittools.kernels.block_mass.triton import repair_lse

    lse, programs, arguments, options = lse_arguments(q, k, scale)
    block_mass_forward[(programs,)](*arguments, **options)
    repair_lse(q, k, lse, scale)
    return lse


def lse_arguments(q, k, scale: float):
    """(lse, programs, arguments, options) of the LSE pass. The result is allocated, not computed."""
    lse = torch.empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32, device=q.device)
    return lse, *_launch(q, k, lse, lse, scale, 0, 0, {"QUERY_BLOCK": SLOT, "KEY_BLOCK": SLOT, "MASS": False})


def mass_arguments(q, k, query, key, scale: float, lse: torch.Tensor):
    """(mass, programs, arguments, options) of the mass pass. The result is allocated, not computed."""
    mass = torch.empty(q.shape[0], q.shape[2], query.count, key.count, dtype=torch.float32, device=q.device)
    blocks = {"QUERY_BLOCK": query.size, "KEY_BLOCK": key.size, "MASS": True}
    return mass, *_launch(q, k, lse, mass, scale, query.count, key.count, blocks)


def _launch(q, k, lse, mass, scale, query_blocks: int, key_blocks: int, options: dict):
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batches, queries, heads, dim = q.shape
    swizzled = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)

    def descriptor(x: torch.Tensor, rows: int):
        x, strides = tma_readable(x)
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
        "STAGES": STAGES,
        "TURN": TURN,
        "num_warps": 4,
        "maxnreg": REGISTERS,
    }
    return tiles * batches * heads, arguments, options
