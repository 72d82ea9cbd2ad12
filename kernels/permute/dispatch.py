"""Move tokens into an order and back, several tensors in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dittools.kernels.checks import check_pass
from dittools.kernels.choice import picks_triton


def gather_tokens(
    tensors: Sequence[torch.Tensor], order: torch.Tensor, *, implementation: str | None = None
) -> tuple[torch.Tensor, ...]:
    """Bring tokens into an order: ``out[b, position, h] = x[b, order[b, h, position], h]``.

    Args:
        tensors: one to three ``[B, S, H, D]`` of one shape and device, any strides.
        order: int32 or int64 ``[B or 1, H or 1, S]``, a permutation of the tokens for each head.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        A contiguous ``[B, S, H, D]`` for each tensor.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    return _move(tensors, order, implementation, back=False)


def scatter_tokens(
    tensors: Sequence[torch.Tensor], order: torch.Tensor, *, implementation: str | None = None
) -> tuple[torch.Tensor, ...]:
    """Bring tokens back, the inverse of `gather_tokens`: ``out[b, order[b, h, position], h] = x[b, position, h]``.

    Args, returns and raises: as `gather_tokens`.
    """
    return _move(tensors, order, implementation, back=True)


def _move(tensors, order, implementation, *, back: bool) -> tuple[torch.Tensor, ...]:
    check_pass(tensors, order)
    if picks_triton(implementation, *tensors):
        from dittools.kernels.permute.triton import triton_permute

        return triton_permute(tensors, order, back=back)
    batches, tokens, heads, dim = tensors[0].shape
    batch = torch.arange(batches, device=order.device)[:, None, None]
    head = torch.arange(heads, device=order.device)
    # Whole rows by number: gather and scatter along a dimension move element by element.
    rows = (batch * tokens + order.transpose(1, 2).long()) * heads + head  # [B, S, H]
    if back:
        return tuple(
            torch.empty(x.shape, dtype=x.dtype, device=x.device)
            .view(-1, dim)
            .index_copy(0, rows.flatten(), x.reshape(-1, dim))
            .view(x.shape)
            for x in tensors
        )
    return tuple(x.reshape(-1, dim).index_select(0, rows.flatten()).view(x.shape) for x in tensors)
