"""The public calls, and the choice among implementations."""

from __future__ import annotations

import importlib.util
import inspect
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch

from dittools.kernels.checked import SLOWER, SOURCES
from dittools.kernels.checks import check_lanes, check_tensors
from dittools.kernels.first_use import why_unproven
from dittools.kernels.hopper import is_hopper, why_not_hopper

IMPLEMENTATIONS = ("hopper", "triton", "portable", "naive")
TRITON_HEAD_DIMS = (64, 96, 128)
TRITON_BLOCKS = (64, 128)
FLOATS = ("float16", "bfloat16", "float32")


def block_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None = None,
    key_order: torch.Tensor | None = None,
    scale: float | None = None,
    key_bias: torch.Tensor | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention in which each query block visits only the key blocks that the mask keeps.

    Args:
        q: ``[B, Sq, H, D]``, fp16, bf16 or fp32, any strides.
        k, v: ``[B, Sk, H, D]``, same dtype and device.
        mask: a `dittools.blocks.BlockMask` over positions, on the same device; or a `dittools.clusters.ClusterMask`,
            see `dittools.kernels.clustered`.
        order: int32 (or int64) ``[B or 1, H or 1, S]``, a permutation: position -> token. Needs Sq == Sk.
            q, k, v and the results stay in token order; None when positions are tokens.
        key_order: with clusters, the order of the keys where it is another.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        key_bias: fp32 ``[B or 1, H or 1, Nk]``, added to the scaled logits of every key in a key block.
        return_lse: also return the log-sum-exp of each row's logits.
        implementation: "hopper", "triton", "portable" or "naive"; chosen by `choose` when None.

    Returns:
        out ``[B, Sq, H, D]`` in the dtype of q. With ``return_lse``: (out, lse), lse fp32 ``[B, H, Sq]``, in
        natural log. A row that keeps no block gives zeros and -inf.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    if getattr(mask, "variable", False):
        from dittools.kernels.clustered import cluster_sparse_attention

        if key_bias is not None:
            raise ValueError("key_bias goes with a BlockMask, and this mask has clusters: leave it out")
        orders = {"order": order, "key_order": key_order}
        call = {"scale": scale, "return_lse": return_lse, "implementation": implementation}
        return cluster_sparse_attention(q, k, v, mask, **orders, **call)
    if key_order is not None:
        raise ValueError("key_order goes with a ClusterMask, and this mask has even blocks: leave it out")
    check_call(q, k, v, mask, order, key_bias)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    elif not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number, got {scale}")
    name = choose(q, k, v, mask, order=order, implementation=implementation)
    return attend_by(name, q, k, v, mask, order=order, scale=scale, key_bias=key_bias, return_lse=return_lse)


def attend_by(
    name: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None,
    scale: float,
    key_bias: torch.Tensor | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`block_sparse_attention` over even blocks by the implementation of this name, for callers that asked `choose`
    and `check_call` before: nothing is asked again.
    """
    call = {"order": order, "scale": float(scale), "key_bias": key_bias}
    if name == "hopper":
        from dittools.kernels.hopper import hopper_block_sparse_attention

        out, lse = hopper_block_sparse_attention(q, k, v, mask, **call)
    elif name == "triton":
        from dittools.kernels.triton_block_sparse import triton_block_sparse_attention

        out, lse = triton_block_sparse_attention(q, k, v, mask, **call)
    elif name == "portable":
        from dittools.kernels.portable import portable_block_sparse_attention

        out, lse = portable_block_sparse_attention(q, k, v, mask, return_lse=return_lse, **call)
    else:
        from dittools.kernels.naive import naive_block_sparse_attention

        out, lse = naive_block_sparse_attention(q, k, v, mask, **call)
    return (out, lse) if return_lse else out


def choose(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None = None,
    implementation: str | None = None,
) -> str:
    """Name of the implementation for this call: the one asked for, else the fastest that can run.

    Warns when a CUDA call goes to plain PyTorch, with the reason.

    Raises:
        ValueError: when the one asked for is unknown or cannot run, with the reason.
    """
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}: use one of {', '.join(IMPLEMENTATIONS)}, or None")
    passed_over = ""
    for name in IMPLEMENTATIONS[:-1] if implementation is None else (implementation,):
        reason = why_not(name, q, k, v, mask)
        if reason is None and implementation is None:
            reason = _why_not_by_itself(name, q.device, order is not None, _hopper_kernel(mask))
        if reason is None:
            if name == "portable" and q.device.type == "cuda" and implementation is None:
                warnings.warn(
                    f"plain PyTorch attends on {q.device}, because triton cannot: {passed_over}", stacklevel=3
                )
            return name
        passed_over = reason
    raise ValueError(f"implementation {name!r} cannot run this call: {reason}")


def why_not(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask) -> str | None:
    """None when this implementation can run this call, else why it cannot."""
    blocks = None if getattr(mask, "variable", False) else (mask.query.size, mask.key.size)
    reason = REASONS[name](q.device, q.dtype, q.shape[-1], blocks)
    if reason is None and name in ("hopper", "triton"):
        reason = _no_gradient(q, k, v)
    return reason


def why_slower(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask, *, order=None) -> str | None:
    """Why a call that went to the implementation ``name`` could not have the faster one of its card; None where it has
    the fastest, or where that was measured to be slower.
    """
    if name == "hopper" or q.device.type != "cuda" or not is_hopper(q.device):
        return None
    reason = why_not("hopper", q, k, v, mask) or why_unproven(_hopper_kernel(mask), q.device, order is not None)
    return None if reason is None or reason.startswith(SLOWER) else reason


def _hopper_kernel(mask) -> str:
    """Which of the Hopper kernels, each of which proves itself apart, attends with this mask."""
    if getattr(mask, "variable", False):
        return "hopper-clusters"
    return "hopper-64" if mask.query.size == 64 else "hopper"


def _why_not_by_itself(
    name: str, device: torch.device, ordered: bool | None, kernel: str = "hopper", prove: bool = True
) -> str | None:
    """Why an implementation that can run is taken only when it is asked for by name; None when it is not so."""
    if name == "hopper":
        return why_unproven(kernel, device, ordered, prove=prove)
    if name == "triton" and device.type != "cuda":
        return "Triton's interpreter is for checking the kernel, never for speed"
    return None


def implementations(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> list[tuple[str, str | None]]:
    """Every implementation with None when it can run there by itself, or the reason why not, fastest first.

    Of calls with even blocks, 128 queries each: kernels for 64 and for clusters prove themselves apart, see
    `hopper_kernels`. Asking makes none of them prove itself.
    """
    device = torch.device(device)
    found = []
    for name in IMPLEMENTATIONS:
        reason = REASONS[name](device, dtype, head_dim, None)
        if reason is None and name == "hopper":
            reason = _why_not_by_itself(name, device, None, prove=False)
        found.append((name, reason))
    return found


def hopper_kernels(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> list[tuple[str, str | None]]:
    """Each Hopper kernel with None where it is taken by itself, or the reason why not; none on other cards."""
    device = torch.device(device)
    if device.type != "cuda" or not is_hopper(device):
        return []
    unable = REASONS["hopper"](device, dtype, head_dim, None)
    return [(name, unable or why_unproven(name, device, prove=False)) for name in SOURCES]


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def why_not_triton(
    device: torch.device, dtype: torch.dtype, head_dim: int, blocks: tuple[int, int] | None = None
) -> str | None:
    """None when the Triton kernel can run, else why it cannot. ``blocks``: query and key block size."""
    if not _has_triton():
        return "Triton is not installed"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            return "on the CPU it runs only in Triton's interpreter (TRITON_INTERPRET=1)"
    elif device.type != "cuda":
        return f"needs a CUDA device, got {device.type}"
    elif torch.version.hip is not None:
        return "not tested on ROCm"
    elif not torch.cuda.is_initialized() and not torch.cuda.is_available():
        return "no CUDA device was found"
    elif torch.cuda.get_device_capability(device) < (8, 0):
        major, minor = torch.cuda.get_device_capability(device)
        return f"needs compute capability 8.0 or newer, got {major}.{minor}"
    if _name(dtype) not in FLOATS:
        return f"needs fp16, bf16 or fp32, got {dtype}"
    if head_dim not in TRITON_HEAD_DIMS:
        return f"needs a head dim of {_any_of(TRITON_HEAD_DIMS)}, got {head_dim}"
    if blocks is not None and not set(blocks) <= set(TRITON_BLOCKS):
        return f"needs query and key blocks of {_any_of(TRITON_BLOCKS)}, got {blocks[0]} and {blocks[1]}"
    return None


def why_not_portable(
    device: torch.device, dtype: torch.dtype, head_dim: int, blocks: tuple[int, int] | None = None
) -> str | None:
    """None: plain PyTorch runs on every device, for every head dim and block size."""
    return None if _name(dtype) in FLOATS else f"needs fp16, bf16 or fp32, got {dtype}"


def why_not_naive(
    device: torch.device, dtype: torch.dtype, head_dim: int, blocks: tuple[int, int] | None = None
) -> str | None:
    """None: the oracle runs everywhere, and only when it is asked for by name."""
    return None if dtype.is_floating_point else f"needs a floating-point dtype, got {dtype}"


REASONS: dict[str, Callable[..., str | None]] = {
    "hopper": why_not_hopper,
    "triton": why_not_triton,
    "portable": why_not_portable,
    "naive": why_not_naive,
}


def dense_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """The fastest dense attention of the machine.

    Args:
        q: ``[B, Sq, H, D]``. k, v: ``[B, Sk, H, D]``.
        mask: bool (True attends) or additive, broadcastable to ``[B, H, Sq, Sk]``.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.

    Returns:
        ``[B, Sq, H, D]``.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    with prefer_cudnn(q.device, q.dtype):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return out.transpose(1, 2)


def dense_kernel_name(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> str:
    """The kernel that `dense_attention` uses without a mask, as "sdpa-cudnn", "sdpa-flash" or "sdpa-cpu"."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return f"sdpa-{device.type}"
    x = torch.empty(1, 1, 128, head_dim, device=device, dtype=dtype)
    params = torch.backends.cuda.SDPAParams(x, x, x, None, 0.0, False, False)
    if cudnn_first(device, dtype) and torch.backends.cuda.can_use_cudnn_attention(params):
        return "sdpa-cudnn"
    if torch.backends.cuda.can_use_flash_attention(params):
        return "sdpa-flash"
    if torch.backends.cuda.can_use_efficient_attention(params):
        return "sdpa-efficient"
    return "sdpa-math"


def cudnn_first(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether cuDNN is asked first: from Hopper on it is the fastest that torch brings, before it is not."""
    from torch.nn.attention import sdpa_kernel

    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and torch.version.hip is None
        and torch.cuda.get_device_capability(device) >= (9, 0)
        and "set_priority" in inspect.signature(sdpa_kernel).parameters
    )


def prefer_cudnn(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Within the context, PyTorch's attention asks cuDNN first where `cudnn_first`; elsewhere nothing changes."""
    if not cudnn_first(device, dtype):
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    return sdpa_kernel(order, set_priority=True)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _no_gradient(*tensors: torch.Tensor) -> str | None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in tensors):
        return "it has no backward: call it under torch.no_grad()"
    return None


def _any_of(values: tuple[int, ...]) -> str:
    return f"{', '.join(map(str, values[:-1]))} or {values[-1]}"


def check_call(q, k, v, mask, order=None, key_bias=None) -> None:
    """Raise a one-line ValueError unless the arguments of a block-sparse call fit together."""
    batches, queries, heads, keys = check_tensors(q, k, v, mask, "partitions")
    # Lists have the shape of the mask, and a mask made from lists need not draw its boolean form for a check.
    check_lanes("the mask", mask.lists()[1], (batches, heads, mask.query.count, mask.key.count), q.device)
    if order is not None:
        if queries != keys:
            raise ValueError(f"an order needs as many queries as keys, got {queries} and {keys}")
        if order.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"order must be int32, got {order.dtype}")
        check_lanes("order", order, (batches, heads, queries), q.device)
    if key_bias is not None:
        if key_bias.dtype != torch.float32:
            raise ValueError(f"key_bias must be torch.float32, got {key_bias.dtype}")
        check_lanes("key_bias", key_bias, (batches, heads, mask.key.count), q.device)
