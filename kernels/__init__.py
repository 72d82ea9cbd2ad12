"""Attention kernels, each beside its oracle, and the choice among them. Importing this imports no Triton."""

from __future__ import annotations

import importlib

_HOME = {
    "block_lists": "lists",
    "block_sparse_attention": "dispatch",
    "choose": "dispatch",
    "dense_attention": "dispatch",
    "dense_kernel_name": "dispatch",
    "implementations": "dispatch",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
