"""What torch's compiler can follow: torch 2.6's stops at the name of an attention backend, ours and diffusers' own."""

from __future__ import annotations

import functools
from importlib.metadata import version


@functools.cache
def why_not_compiled() -> str | None:
    """None where blocks with a named attention backend compile, else the reason. Does not import torch."""
    found = version("torch")
    if tuple(int(part) for part in found.split(".")[:2]) >= (2, 7):
        return None
    return f"torch {found} cannot compile a block whose attention names its backend: run eager, or install torch 2.7"
