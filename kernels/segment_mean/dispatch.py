"""Means of runs of positions in an order: what stands for a block or a cluster of tokens.

``mean[b, h, n] = mean of x[b, order[b, h, i], h] over i in offsets[b, h, n] .. offsets[b, h, n + 1]``
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dittools.kernels.checks import check_lane_count, check_pass
from dittools.kernels.choice import picks_triton
from dittools.kernels.counting_sort.dispatch import runs_of_positions


def segment_means(
    x: torch.Tensor | Sequence[torch.Tensor],
    order: torch.Tensor | None,
    offsets: torch.Tensor,
    *,
    implementation: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """The mean vector of every run of positions, in every head of every batch.

    Args:
        x: ``[B, S, H, D]``, any strides; or up to three of one shape and device in a sequence, for one pass.
        order: int32 or int64 ``[B or 1, H or 1, S]``, position -> token; None: positions are tokens.
        offsets: int32 ``[B or 1, H or 1, N + 1]``, ascending and at most S, which is not checked: run n is the
            positions ``offsets[n] .. offsets[n + 1]``. Runs may have any size, and may be empty.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        fp32 ``[B, H, N, D]`` for a tensor, a tuple of them for a sequence; 0 where a run is empty. Sums are fp32, in
        an order that is the same each time on the Triton path, however long a run is.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    one = isinstance(x, torch.Tensor)
    tensors = [x] if one else list(x)
    check_pass(tensors, order)
    if offsets.dtype != torch.int32 or offsets.ndim != 3 or offsets.shape[-1] < 2:
        raise ValueError(f"offsets must be int32 [B or 1, H or 1, N + 1], got {offsets.dtype} {list(offsets.shape)}")
    check_lane_count("offsets", offsets, tensors[0])
    if picks_triton(implementation, *tensors):
        from dittools.kernels.segment_mean.triton import triton_segment_means

        means = triton_segment_means(tensors, order, offsets)
    else:
        means = tuple(_portable(y, order, offsets) for y in tensors)
    return means[0] if one else means


def _portable(x: torch.Tensor, order: torch.Tensor | None, offsets: torch.Tensor) -> torch.Tensor:
    """Lane by lane, so that no more than the tokens of one are widened at a time."""
    batches, tokens, heads, dim = x.shape
    runs = offsets.shape[-1] - 1
    lanes = (batches, heads, -1)
    sizes = offsets.diff(dim=-1).expand(lanes)
    slots = (runs_of_positions(offsets, tokens) + 1).expand(lanes)  # positions in no run have slots at both ends
    order = None if order is None else order.expand(lanes)
    sums = []
    for b in range(batches):
        for h in range(heads):
            rows = x[b, :, h] if order is None else x[b, :, h].index_select(0, order[b, h].long())
            sums.append(torch.zeros(runs + 2, dim, device=x.device).index_add_(0, slots[b, h], rows.float())[1:-1])
    return torch.stack(sums).view(batches, heads, runs, dim) / sizes.clamp_min(1)[..., None]
