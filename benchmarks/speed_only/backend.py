"""The fastest of diffusers' own attention backends for a model's dense calls on this card."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from dittools.benchmarks.speed_only.table import RECORDS
from dittools.kernels.timing import alone
from dittools.pipelines.families import find_family

NAMES = ("native", "_native_cudnn", "_native_flash", "_flash_3")


@torch.no_grad()
def fastest_dense(
    pipe: Any, tokens: int, device: torch.device, dtype: torch.dtype
) -> tuple[str | None, dict[str, float]]:
    """Set a model to the fastest of diffusers' dense backends, found by timing one layer's shape on this card.

    Args:
        pipe: a `SpeedOnly`.
        tokens: in a self-attention sequence, text included.

    Returns:
        Its name (None where nothing was to choose: on a CPU, or where the model's attention takes no backend), and
        the milliseconds of each.
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    if device.type != "cuda" or find_family(pipe.size.family).way != "backend":
        return None, {}
    shape = (1, tokens, pipe.size.heads, pipe.size.head_dim)
    q, k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(3))
    # A backend that takes no mask is of no use to a model that always gives one.
    masked = RECORDS[pipe.size.family].masked
    mask = torch.ones(1, 1, 1, tokens, dtype=torch.bool, device=device) if masked else None

    def call(name: str) -> torch.Tensor:
        return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=name)

    def around(name: str) -> AbstractContextManager:
        pipe.transformer.set_attention_backend(name)
        return nullcontext()

    ms = alone(NAMES, call, device, 4, around=around, unable=(ImportError, ValueError, RuntimeError))
    if not ms:
        pipe.transformer.set_attention_backend("native")
        return None, {}
    # What a user runs wins unless another is clearly faster.
    best = min(ms, key=lambda name: ms[name] * (0.98 if name == "native" else 1))
    pipe.transformer.set_attention_backend(best)
    return best, ms
