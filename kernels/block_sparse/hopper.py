"""Block-sparse attention for Hopper (compute capability 9.x): when it can run, and its launch.

The kernel is `hopper_forward.py`, which needs Triton with Gluon; importing this file does not.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from dittools.kernels.block_sparse.hopper_variants import variant_of
from dittools.kernels.block_sparse.sample_tiles import sample_tiles, slots_of
from dittools.kernels.hopper_launch import REGISTERS, UNIT, tma_readable
from dittools.kernels.permute.dispatch import gather_tokens
from dittools.kernels.strides import lane_strides

if TYPE_CHECKING:
    from dittools.kernels.block_sparse.sample import Sample

CONSUMER_ROWS = 64
# With one consumer, 256 threads: two programs then take all registers of a multiprocessor, 232 a consumer's thread.
REGISTERS_NARROW = 128
# Copies of k and v that a call with an order may hold at a time; Wan 14B at 720p takes 1.5 GB.
COPY_BYTES = 2 << 30


def hopper_block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None = None,
    scale: float,
    beside: torch.Tensor | Sample | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward kernel.

    The kernel walks positions. With an ``order``, k and v are first copied into it in one pass, heads at a time where
    the copies of all would be large; rows of q are gathered and those of the output scattered by the kernel itself.
    The keys of a sample are copied side by side.

    ``beside``: a key bias, or a sample.

    Args: as `dittools.kernels.block_sparse_attention`, already validated, with D in {64, 128}, fp16 or bf16, and query
        and key blocks in {64, 128}.

    Returns:
        out ``[B, Sq, H, D]`` in the dtype of q, and lse ``[B, H, Sq]``, fp32, natural log, in token order.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32, device=q.device)
    if order is None:
        _launch(q, k, v, mask, scale, beside, None, (out, lse))
        return out, lse
    for part in head_groups(k):
        some = _heads(order, 1, part)
        copies = gather_tokens((_heads(k, 2, part), _heads(v, 2, part)), some)
        results = _heads(out, 2, part), _heads(lse, 1, part)
        _launch(_heads(q, 2, part), *copies, _HeadsOf(mask, part), scale, _beside(beside, part), some, results)
    return out, lse


def head_groups(k: torch.Tensor) -> list[slice]:
    """Heads whose ordered k and v fit into `COPY_BYTES` together."""
    heads = k.shape[2]
    most = max(1, COPY_BYTES * heads // (2 * k.numel() * k.element_size()))
    return [slice(i, min(i + most, heads)) for i in range(0, heads, most)]


def _heads(x: torch.Tensor, dim: int, part: slice) -> torch.Tensor:
    """These heads of a tensor; all of it where the heads share one entry."""
    return x if x.shape[dim] == 1 else x.narrow(dim, part.start, part.stop - part.start)


def _beside(beside: torch.Tensor | Sample | None, part: slice) -> torch.Tensor | Sample | None:
    """A key bias or a sample for some heads."""
    if isinstance(beside, torch.Tensor):
        return _heads(beside, 1, part)
    if beside is None or beside.taken is None:
        return beside
    return replace(beside, taken=_heads(beside.taken, 1, part))


class _HeadsOf:
    """Some heads of a mask, as far as a launch reads it."""

    def __init__(self, mask, part: slice):
        self.query, self.key = mask.query, mask.key
        self._mask, self._part = mask, part

    def kv_blocks(self) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(_heads(x, 1, self._part) for x in self._mask.kv_blocks())

    def kept_bits(self) -> torch.Tensor:
        return _heads(self._mask.kept_bits(), 1, self._part)


def _launch(q, k, v, mask, scale, beside, order, results) -> None:
    from dittools.kernels.block_sparse.hopper_forward import block_sparse_forward

    programs, arguments, options = launch_arguments(q, k, v, mask, scale, beside, order, results)
    block_sparse_forward[(programs,)](*arguments, **options)


def launch_arguments(q, k, v, mask, scale, beside, order, results: tuple[torch.Tensor, torch.Tensor]):
    """(programs, arguments, options) of a launch that fills ``results``: ``out`` and ``lse``.

    With an ``order``, k and v are in it already, and ``out`` and ``lse`` may be some heads of larger tensors.
    """
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    out, lse = results
    key_bias, sample = (beside, None) if isinstance(beside, torch.Tensor) else (None, beside)
    batches, queries, heads, dim = q.shape
    keys = k.shape[1]
    rows, key_block = mask.query.size, mask.key.size
    variant = variant_of(dim, rows, ordered=order is not None)
    swizzled = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)

    def descriptor(x: torch.Tensor, rows: int, columns: int):
        x, strides = tma_readable(x)
        shape = [x.shape[0], x.shape[2], x.shape[1], x.shape[3]]
        return TensorDescriptor(x, shape, strides, [1, 1, rows, columns], swizzled)

    # A part of a slot is copied in columns: see the kernel.
    box = (min(key_block, variant.slot), dim if key_block >= variant.slot else 64)
    kv_num_blocks, kv_indices = mask.kv_blocks()
    if order is None:
        source, result, q_steps = descriptor(q, 64, dim), descriptor(out, 64, dim), (0, 0, 0)
    else:
        source, (b, h, s, _) = tma_readable(q)
        result, q_steps = out, tuple(step // UNIT for step in (b, s, h))
        order = order.int() if order.stride(-1) == 1 else order.int().contiguous()
    if key_bias is not None and key_bias.stride(-1) != 1:
        key_bias = key_bias.contiguous()
    queue = torch.zeros(1, dtype=torch.int32, device=q.device) if variant.persistent else kv_num_blocks
    consumers, tiles = rows // CONSUMER_ROWS, mask.query.count
    d_k, d_v = descriptor(k, *box), descriptor(v, *box)
    d_sk, d_sv, bits, taken, counts, draws = d_k, d_v, None, None, None, (1, 0)
    if sample is not None:
        d_sk, d_sv = (descriptor(x, variant.slot, dim) for x in sample_tiles(k, v, sample, variant.slot))
        bits, taken, counts = mask.kept_bits(), sample.taken, sample.counts.contiguous()
        draws = len(sample.positions), slots_of(sample, variant.slot)
    programs = all_tiles = tiles * batches * heads
    if variant.persistent and q.device.type == "cuda":
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count * (2 // consumers))
    arguments = (
        source, d_k, d_v, result, lse, kv_num_blocks, kv_indices,
        lse if key_bias is None else key_bias, kv_num_blocks if order is None else order, queue,
        d_sk, d_sv, kv_num_blocks if bits is None else bits, kv_num_blocks if taken is None else taken,
        kv_num_blocks if counts is None else counts, scale, 0.0 if sample is None else math.log2(sample.weight),
        queries, keys, heads, out.stride(1) // dim, tiles, all_tiles, mask.key.count,
        0 if bits is None else bits.shape[-1], *draws,
        *lane_strides(kv_num_blocks), *lane_strides(kv_indices), *lane_strides(key_bias), *lane_strides(order),
        *q_steps, *lane_strides(bits), *lane_strides(taken),
    )  # fmt: skip
    options = {
        "D": dim,
        "BN": variant.slot,
        "KEY_BLOCK": key_block,
        "STAGES": variant.stages,
        "CONSUMERS": consumers,
        "HAS_ORDER": order is not None,
        "HAS_BIAS": key_bias is not None,
        "PER": 0 if sample is None else sample.per,
        "HAS_TAKEN": taken is not None,
        "PERSISTENT": variant.persistent,
        "num_warps": 4,
        "maxnreg": REGISTERS if consumers == 2 else REGISTERS_NARROW,
    }
    return programs, arguments, options
