"""The one path every sparse call takes."""

from __future__ import annotations

import torch

from dittools.kernels.dispatch import block_sparse_attention
from dittools.methods.base import Plan


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    scale: float | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over the pairs a plan keeps.

    Args:
        q, k, v: ``[B, S, H, D]`` in token order.
        plan: order and mask.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        implementation: a kernel by name; the fastest that can run by default.
        return_lse: corrections need it; it costs a little, so it is asked for.

    Returns:
        out ``[B, S, H, D]`` in token order, and lse fp32 ``[B, H, S]`` or None.
    """
    result = block_sparse_attention(
        q,
        k,
        v,
        plan.mask,
        order=plan.order,
        key_order=plan.key_order,
        scale=scale,
        return_lse=return_lse,
        implementation=implementation,
    )
    return result if return_lse else (result, None)
