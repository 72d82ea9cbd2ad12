"""PyTorch's dense attention kernels by name: which can run here, and a stretch of work under one of them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

# fastest first where nothing is measured; on the CPU "flash" is what PyTorch takes by itself
_NAMES = {"cpu": ("flash", "math"), "cuda": ("cudnn", "flash", "efficient")}
_BACKENDS = {"cudnn": "CUDNN_ATTENTION", "flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "math": "MATH"}


def names(device: Any, dtype: str, head_dim: int) -> list[str]:
    """Kernels that can run, in the order of `_NAMES`. On CUDA each is tried on a small call."""
    import torch
    import torch.nn.functional as F

    found = []
    for name in _NAMES.get(device.type, ("math",)):
        x = torch.zeros(1, 1, 128, head_dim, device=device, dtype=getattr(torch, dtype))
        try:
            with torch.no_grad(), only(name):
                F.scaled_dot_product_attention(x, x, x)
        except RuntimeError:
            continue
        found.append(name)
    return found


def fastest_first(found: list[str], shape: tuple[int, int, int, int], device: Any, dtype: str) -> list[str]:
    """Kernels in the order of their speed on a call of this shape, ``[B, H, S, D]``, each run by itself: a compiled
    model keeps the kernel that it was compiled with, whatever is asked for later.
    """
    import torch
    import torch.nn.functional as F

    from dittools.kernels.timing import alone

    x = torch.randn(shape, device=device, dtype=getattr(torch, dtype))
    with torch.no_grad():
        ms = alone(found, lambda name: F.scaled_dot_product_attention(x, x, x), device, 3, around=only)
    return sorted(found, key=ms.__getitem__)


def only(name: str) -> AbstractContextManager:
    """Dense attention by this kernel and no other."""
    return _by([name])


def using(name: str) -> AbstractContextManager:
    """Dense attention by this kernel wherever it can run; calls it cannot take go to the others."""
    from torch.nn.attention import sdpa_kernel

    if name == "math" or "set_priority" not in inspect.signature(sdpa_kernel).parameters:
        return _by(dict.fromkeys((name, "math")))
    return _by(dict.fromkeys((name, *_BACKENDS)), set_priority=True)


def _by(order: Iterable[str], **how: bool) -> AbstractContextManager:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([getattr(SDPBackend, _BACKENDS[name]) for name in order], **how)
