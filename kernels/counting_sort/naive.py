"""The oracle of the stable sort by label."""

from __future__ import annotations

import torch


def naive_sort_by_label(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The oracle: labels one after the other, and of each its tokens in order."""
    runs = [[(row == c).nonzero().flatten() for c in range(count)] for row in labels]
    order = torch.stack([torch.cat(row) for row in runs]).int()
    sizes = torch.tensor([[len(run) for run in row] for row in runs], dtype=torch.int32)
    return order, torch.nn.functional.pad(sizes.cumsum(-1, dtype=torch.int32), (1, 0)).to(labels.device)
