"""Stable sort of tokens by label: the permutation that makes every cluster a run of positions."""

from __future__ import annotations

import torch

from dittools.kernels.capability import why_not_triton_sort
from dittools.kernels.choice import picks_triton


def sort_by_label(
    labels: torch.Tensor, count: int, *, implementation: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Order tokens by label, equal labels in the order of the tokens.

    Args:
        labels: int ``[N, S]``, each in ``[0, count)``, which is not checked: that would wait for the device.
        count: number of labels.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        order int32 ``[N, S]``: position -> token; offsets int32 ``[N, count + 1]``: the tokens with label c
        take the positions ``offsets[c] .. offsets[c + 1]``. Made without a host sync, and exact on every path.

    Raises:
        ValueError: when labels are not integers ``[N, S]``, count is below 1, or ``implementation`` cannot run.
    """
    if labels.ndim != 2 or labels.dtype.is_floating_point or labels.dtype == torch.bool:
        raise ValueError(f"labels must be int [N, S], got {labels.dtype} {list(labels.shape)}")
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if picks_triton(implementation, labels, reason=why_not_triton_sort(count)):
        from dittools.kernels.counting_sort.triton import triton_sort_by_label

        return triton_sort_by_label(labels, count)
    # Radix sorts take as many passes as a label has bytes.
    narrow = labels.to(torch.int16) if count <= torch.iinfo(torch.int16).max else labels
    order = narrow.sort(dim=-1, stable=True).indices.int()
    return order, offsets_of(label_counts(labels, count))


def label_counts(labels: torch.Tensor, count: int) -> torch.Tensor:
    """How often each label occurs: int ``[N, S]`` -> int32 ``[N, count]``, without a host sync."""
    sizes = torch.zeros(labels.shape[0], count, dtype=torch.int32, device=labels.device)
    one = torch.ones((), dtype=torch.int32, device=labels.device)
    return sizes.scatter_add_(-1, labels.long(), one.expand(labels.shape))


def offsets_of(sizes: torch.Tensor) -> torch.Tensor:
    """Where runs of these sizes begin and end: int32 ``[..., C]`` -> int32 ``[..., C + 1]``."""
    return torch.nn.functional.pad(sizes.cumsum(-1, dtype=torch.int32), (1, 0))


def runs_of_positions(offsets: torch.Tensor, length: int) -> torch.Tensor:
    """The run that each position lies in: offsets int32 ``[..., N + 1]`` -> int32 ``[..., length]``.

    -1 before the first run, N after the last. Made without a host sync.
    """
    positions = torch.arange(length, dtype=torch.int32, device=offsets.device)
    positions = positions.expand(*offsets.shape[:-1], -1).contiguous()
    return torch.searchsorted(offsets.contiguous(), positions, right=True, out_int32=True) - 1
