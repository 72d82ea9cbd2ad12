"""Block-sparse attention for Hopper (compute capability 9.x): when it can run, and its launch.

The kernel is `hopper_forward.py`, which needs Triton with Gluon; importing this file does not.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util

import torch

from dittools.kernels.hopper_variants import Variant, default_variant

HEAD_DIMS = (64, 128)
BLOCKS = (64, 128)
SLOT = 128  # keys in a slot of the rings, unless a variant says otherwise
CONSUMER_ROWS = 64
UNIT = 8  # elements in the 16 bytes that everything is read by
OLDEST_TRITON = (3, 6)
# 384 threads at 168 registers; the kernel deals them out again as 240 to each consumer and 24 to the producer.
REGISTERS = 168
# With one consumer, 256 threads: two programs then take all registers of a multiprocessor, 232 a consumer's thread.
REGISTERS_NARROW = 128
# Copies of k and v that a call with an order may hold at a time; Wan 14B at 720p takes 1.5 GB.
COPY_BYTES = 2 << 30


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
    if blocks is not None and not set(blocks) <= set(BLOCKS):
        return f"needs query and key blocks of 64 or 128, got {blocks[0]} and {blocks[1]}"
    return None


def is_hopper(device: torch.device) -> bool:
    """Whether a CUDA device is a card that the kernels here are written for."""
    return torch.version.hip is None and torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] == 9


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

    The kernel walks positions. With an ``order``, k and v are first copied into it in one pass, heads at a time where
    the copies of all would be large; rows of q are gathered and those of the output scattered by the kernel itself.

    Args: as `dittools.kernels.block_sparse_attention`, already validated, with D in {64, 128}, fp16 or bf16, and query
        and key blocks in {64, 128}. ``variant``: how to run, `default_variant` when None.

    Returns:
        out ``[B, Sq, H, D]`` in the dtype of q, and lse ``[B, H, Sq]``, fp32, natural log, in token order.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32, device=q.device)
    if order is None:
        _launch(q, k, v, mask, scale, key_bias, variant, None, out, lse)
        return out, lse
    # The permutes choose by dispatch, which imports this file.
    from dittools.kernels.permute import gather_tokens

    for part in head_groups(k):
        some = _heads(order, 1, part)
        copies = gather_tokens((_heads(k, 2, part), _heads(v, 2, part)), some)
        bias = None if key_bias is None else _heads(key_bias, 1, part)
        results = _heads(out, 2, part), _heads(lse, 1, part)
        _launch(_heads(q, 2, part), *copies, _HeadsOf(mask, part), scale, bias, variant, some, *results)
    return out, lse


def head_groups(k: torch.Tensor) -> list[slice]:
    """Heads whose ordered k and v fit into `COPY_BYTES` together."""
    heads = k.shape[2]
    most = max(1, COPY_BYTES * heads // (2 * k.numel() * k.element_size()))
    return [slice(i, min(i + most, heads)) for i in range(0, heads, most)]


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


def _launch(q, k, v, mask, scale, key_bias, variant, order, out, lse) -> None:
    from dittools.kernels.hopper_forward import block_sparse_forward

    programs, arguments, options = launch_arguments(q, k, v, mask, scale, key_bias, variant, order, out, lse)
    block_sparse_forward[(programs,)](*arguments, **options)


def launch_arguments(q, k, v, mask, scale, key_bias, variant: Variant | None, order, out, lse):
    """(programs, arguments, options) of a launch that fills ``out`` and ``lse``.

    With an ``order``, k and v are in it already, and ``out`` and ``lse`` may be some heads of larger tensors.
    """
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    batches, queries, heads, dim = q.shape
    keys = k.shape[1]
    rows, key_block = mask.query.size, mask.key.size
    variant = variant or default_variant(dim, rows, ordered=order is not None)
    swizzled = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)

    def descriptor(x: torch.Tensor, rows: int, columns: int):
        x, strides = _readable(x)
        shape = [x.shape[0], x.shape[2], x.shape[1], x.shape[3]]
        return TensorDescriptor(x, shape, strides, [1, 1, rows, columns], swizzled)

    # A part of a slot is copied in columns: see the kernel.
    box = (min(key_block, variant.slot), dim if key_block >= variant.slot else 64)
    counts, indices = mask.lists()
    if order is None:
        source, result, q_steps = descriptor(q, 64, dim), descriptor(out, 64, dim), (0, 0, 0)
    else:
        source, (b, h, s, _) = _readable(q)
        result, q_steps = out, tuple(step // UNIT for step in (b, s, h))
        order = order.int() if order.stride(-1) == 1 else order.int().contiguous()
    if key_bias is not None and key_bias.stride(-1) != 1:
        key_bias = key_bias.contiguous()
    queue = torch.zeros(1, dtype=torch.int32, device=q.device) if variant.persistent else counts
    consumers, tiles = rows // CONSUMER_ROWS, mask.query.count
    programs = all_tiles = tiles * batches * heads
    if variant.persistent and q.device.type == "cuda":
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count * (2 // consumers))
    arguments = (
        source, descriptor(k, *box), descriptor(v, *box), result, lse, counts, indices,
        lse if key_bias is None else key_bias, counts if order is None else order, queue,
        scale, queries, keys, heads, out.stride(1) // dim, tiles, all_tiles, mask.key.count,
        *_lane_strides(counts), *_lane_strides(indices), *_lane_strides(key_bias), *_lane_strides(order), *q_steps,
    )  # fmt: skip
    options = {
        "D": dim,
        "BN": variant.slot,
        "KEY_BLOCK": key_block,
        "STAGES": variant.stages,
        "CONSUMERS": consumers,
        "HAS_ORDER": order is not None,
        "HAS_BIAS": key_bias is not None,
        "OVERLAP": variant.overlap,
        "PIN": variant.pin,
        "HOLD": variant.hold,
        "PERSISTENT": variant.persistent,
        "num_warps": 4,
        "maxnreg": REGISTERS if consumers == 2 else REGISTERS_NARROW,
    }
    return programs, arguments, options


def _readable(x: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
    """``x`` ``[B, S, H, D]``, copied only where TMA cannot read it, and its strides over (B, H, S, D)."""

    def fits(x):
        steps = [step for size, step in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
        return x.stride(3) == 1 and x.data_ptr() % 16 == 0 and all(step > 0 and step % UNIT == 0 for step in steps)

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
