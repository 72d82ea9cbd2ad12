"""Dense attention: the fastest kernel that PyTorch has on the machine."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager, nullcontext

import torch


def dense_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, mask: torch.Tensor | None = None, scale: float | None = None
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

    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)
