"""Dense attention kernels, to find the fastest of the machine: PyTorch's own, and FlashAttention 3 and 4 if installed.

Each is a function of q, k, v ``[B, S, H, D]`` that gives what makes the call; it raises ImportError where it is not
installed, and whatever it likes where it cannot run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

Make = Callable[..., Callable[[], object]]
FLASH = ("fa3", "fa4")


def _sdpa(backend: SDPBackend) -> Make:
    def make(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))

        def call() -> torch.Tensor:
            with sdpa_kernel([backend]):
                return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

        return call

    return make


def _fa3(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    """FlashAttention 3, from its own repository."""
    from flash_attn_interface import flash_attn_func

    def call() -> torch.Tensor:
        out = flash_attn_func(q, k, v)
        return out[0] if isinstance(out, tuple) else out

    return call


def _fa4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], object]:
    """FlashAttention 4 (CuTe), which has a path for Hopper too."""
    from flash_attn.cute.interface import _flash_attn_fwd

    return lambda: _flash_attn_fwd(q, k, v)[0]


KERNELS: dict[str, Make] = {
    "cudnn": _sdpa(SDPBackend.CUDNN_ATTENTION),
    "flash": _sdpa(SDPBackend.FLASH_ATTENTION),
    "efficient": _sdpa(SDPBackend.EFFICIENT_ATTENTION),
    "fa3": _fa3,
    "fa4": _fa4,
}
MODULES = {"fa3": "flash_attn_interface", "fa4": "flash_attn.cute"}


def candidates(device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Make], dict[str, str]]:
    """Kernels to try on a device, and those that are not installed with the reason."""
    names = list(KERNELS) if device.type == "cuda" else ["flash"]
    if device.type == "cuda":
        # In fp32 it is the only one there is, in 16 bits the slowest.
        names = ["efficient"] if dtype == torch.float32 else [name for name in names if name != "efficient"]
    able, absent = {}, {}
    for name in names:
        if name in MODULES and not installed(MODULES[name]):
            absent[name] = f"{MODULES[name]} is not installed"
        else:
            able[name] = KERNELS[name]
    return able, absent


def installed(module: str) -> bool:
    """Whether a module can be found, without importing more than its parents."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError, AttributeError):
        return False
