"""Block-sparse attention for Hopper (compute capability 9.x): when it can run, and its launch.

The kernel is `hopper_forward.py`, which needs Triton with Gluon; importing this file does not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass

import torch

HEAD_DIMS = (64, 128)
QUERY_BLOCK = 128
KEY_BLOCKS = (64, 128)
SLOT = 128
OLDEST_TRITON = (3, 6)
# 384 threads at 168 registers; the kernel deals them out again as 240 to each consumer and 24 to the producer.
REGISTERS = 168
# Copies of q, k, v and the output that a call with an order may hold at a time; Wan 14B at 720p takes 3.1 GB.
COPY_BYTES = 4 << 30


@dataclass(frozen=True)
class Variant:
    """How the kernel runs; every variant computes the same.

    Args:
        stages: slots of 128 keys in the rings of K and of V. At head dim 128, 3 fill the shared memory.
        overlap: run the softmax of one slot while the tensor cores multiply the weights of the slot before.
        persistent: one program a multiprocessor, drawing tiles from a queue, instead of one program a tile. The
            next tile's copies then begin during the last one's end. Not with 3 stages at head dim 128.
        pin: with overlap, keep the assembler from moving the wait for the tensor cores ahead of the softmax.
    """

    stages: int = 2
    overlap: bool = True
    persistent: bool = False
    pin: bool = True


def default_variant(head_dim: int) -> Variant:
    """The variant that runs when none is asked for."""
    return Variant(stages=2 if head_dim == 128 else 3)


def why_not_hopper(
    device: torch.device, dtype: torch.dtype, head_dim: int, blocks: tuple[int, int] | None = None
) -> str | None:
    """None when the Hopper kernel can run, else why it cannot. ``blocks``: query and key block size."""
    if device.type != "cuda":
        return f"needs a CUDA device, got {device.type}"
    if torch.version.hip is not None:
        return "needs an NVIDIA GPU"
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        return f"needs compute capability 9.x (Hopper), got {major}.{minor}"
    reason = why_no_gluon()
    if reason is not None:
        return reason
    if dtype not in (torch.float16, torch.bfloat16):
        return f"needs fp16 or bf16, got {dtype}"
    if head_dim not in HEAD_DIMS:
        return f"needs a head dim of 64 or 128, got {head_dim}"
    if blocks is not None and blocks[0] != QUERY_BLOCK:
        # With 64 rows a tile, K and V stream from L2 twice as often as L2 can give.
        return f"needs query blocks of 128, got {blocks[0]}"
    if blocks is not None and blocks[1] not in KEY_BLOCKS:
        return f"needs key blocks of 64 or 128, got {blocks[1]}"
    return None


def why_no_gluon() -> str | None:
    """None when a Triton with the Gluon that the kernel is written in is installed, else what is missing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        import triton

        version = triton.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRITON:
        return f"needs Triton 3.6 or newer, got {version}"
    return None


def hopper_block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None = None,
    scale: float,
    key_bias: torch.Tensor | None = None,
    variant: Variant | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward kernel.

    The kernel walks positions. With an ``order``, q, k and v are first copied into it in one pass and the output is
    copied back, heads at a time where the copies of all would be large; the Triton kernel, which gathers on the fly,
    does without.

    Args: as `dittools.kernels.block_sparse_attention`, already validated, with D in {64, 128}, fp16 or bf16, query
        blocks of 128 and key blocks in {64, 128}. ``variant``: how to run, `default_variant` when None.

    Returns:
        out ``[B, Sq, H, D]`` in the dtype of q, and lse ``[B, H, Sq]``, fp32, natural log, in token order.
    """
    if order is None:
        return _launch(q, k, v, mask, scale, key_bias, variant)
    groups = head_groups(q)
    call = (mask, order, scale, key_bias, variant)
    parts = [_in_order(*(_heads(x, 2, part) for x in (q, k, v)), *call, part) for part in groups]
    if len(groups) == 1:
        return parts[0]
    return torch.cat([out for out, _ in parts], 2), torch.cat([lse for _, lse in parts], 1)


def head_groups(q: torch.Tensor) -> list[slice]:
    """Heads whose ordered q, k, v and output fit into `COPY_BYTES` together."""
    heads = q.shape[2]
    most = max(1, COPY_BYTES * heads // (4 * q.numel() * q.element_size()))
    return [slice(i, min(i + most, heads)) for i in range(0, heads, most)]


def _in_order(q, k, v, mask, order, scale, key_bias, variant, part: slice):
    """One group of heads: copied into the order, attended, copied back."""
    # The permutes choose by dispatch, which imports this file.
    from dittools.kernels.permute import gather_tokens, scatter_tokens

    order = _heads(order, 1, part)
    key_bias = None if key_bias is None else _heads(key_bias, 1, part)
    found, found_lse = _launch(*gather_tokens((q, k, v), order), _HeadsOf(mask, part), scale, key_bias, variant)
    (out,) = scatter_tokens((found,), order)
    index = order.expand(out.shape[0], out.shape[2], -1).long()
    return out, torch.empty_like(found_lse).scatter_(2, index, found_lse)


def _heads(x: torch.Tensor, dim: int, part: slice) -> torch.Tensor:
    """These heads of a tensor; all of it where the heads share one entry."""
    return x if x.shape[dim] == 1 else x.narrow(dim, part.start, part.stop - part.start)


class _HeadsOf:
    """Some heads of a mask, as far as a launch reads it."""

    def __init__(self, mask, part: slice):
        self.query, self.key = mask.query, mask.key
        self._lists = tuple(_heads(x, 1, part) for x in mask.lists())

    def lists(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._lists


def _launch(q, k, v, mask, scale, key_bias, variant):
    from dittools.kernels.hopper_forward import block_sparse_forward

    out, lse, programs, arguments, options = launch_arguments(q, k, v, mask, scale, key_bias, variant)
    block_sparse_forward[(programs,)](*arguments, **options)
    return out, lse


def launch_arguments(q, k, v, mask, scale, key_bias=None, variant: Variant | None = None):
    """(out, lse, programs, arguments, options) of a launch. The results are allocated, not computed."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batches, queries, heads, dim = q.shape
    keys = k.shape[1]
    variant = variant or default_variant(dim)
    key_block = mask.key.size
    swizzled = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)

    def descriptor(x: torch.Tensor, rows: int, columns: int):
        x, strides = _readable(x)
        shape = [x.shape[0], x.shape[2], x.shape[1], x.shape[3]]
        return TensorDescriptor(x, shape, strides, [1, 1, rows, columns], swizzled)

    columns = dim if key_block == SLOT else 64  # a part of a slot is copied in columns: see the kernel
    counts, indices = mask.lists()
    out = torch.empty((batches, queries, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batches, heads, queries), dtype=torch.float32, device=q.device)
    if key_bias is not None and key_bias.stride(-1) != 1:
        key_bias = key_bias.contiguous()
    queue = torch.zeros(1, dtype=torch.int32, device=q.device) if variant.persistent else counts
    tiles = mask.query.count
    programs = all_tiles = tiles * batches * heads
    if variant.persistent and q.device.type == "cuda":
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count)
    arguments = (
        descriptor(q, 64, dim), descriptor(k, key_block, columns), descriptor(v, key_block, columns),
        descriptor(out, 64, dim), lse, counts, indices, lse if key_bias is None else key_bias, queue,
        scale, queries, keys, heads, tiles, all_tiles, mask.key.count,
        *_lane_strides(counts), *_lane_strides(indices), *_lane_strides(key_bias),
    )  # fmt: skip
    options = {
        "D": dim,
        "BN": SLOT,
        "KEY_BLOCK": key_block,
        "STAGES": variant.stages,
        "HAS_BIAS": key_bias is not None,
        "OVERLAP": variant.overlap,
        "PIN": variant.pin,
        "PERSISTENT": variant.persistent,
        "num_warps": 4,
        "maxnreg": REGISTERS,
    }
    return out, lse, programs, arguments, options


def _readable(x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """``x`` ``[B, S, H, D]``, copied only where TMA cannot read it, and its strides over (B, H, S, D)."""
    unit = 16 // x.element_size()

    def fits(x):
        steps = [step for size, step in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
        return x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(step > 0 and step % unit == 0 for step in steps)

    if not fits(x):
        x = x.clone(memory_format=torch.contiguous_format)
    # The stride of a dimension of size 1 may be anything, and is checked all the same.
    b, s, h = (step if size > 1 else x.shape[3] for size, step in zip(x.shape[:3], x.stride()[:3], strict=True))
    return x, [b, h, s, 1]


def _lane_strides(x: torch.Tensor | None) -> tuple[int, int]:
    """Strides over batch and head, 0 where all batches or heads share one entry."""
    if x is None:
        return 0, 0
    return tuple(0 if size == 1 else step for size, step in zip(x.shape[:2], x.stride()[:2], strict=True))
