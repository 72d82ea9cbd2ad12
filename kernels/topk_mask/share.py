"""What fills a share of the pairs on every path: what is kept in any case, and how rows round."""

from __future__ import annotations

from functools import lru_cache

import torch

HALVINGS = 30
_GOLDEN = 0.6180339887498949


def must_keep(scores: torch.Tensor, force: torch.Tensor | None, key_sizes: torch.Tensor) -> torch.Tensor:
    """What is kept whatever the share: forced blocks, and the best of each row in which none of these holds a key.

    Args:
        scores: ``[B, H, Mq, Nk]``. force: broadcastable to them. key_sizes: broadcastable to ``[B, H, Nk]``.

    Returns:
        bool, as the scores. The best of a row is the first of equal ones among blocks that hold keys: an empty one
        would leave the row nothing to see.
    """
    must = torch.zeros_like(scores, dtype=torch.bool)
    held = (key_sizes > 0).to(scores.device)[..., None, :]
    # A score of -inf beside no other still stands above an empty block.
    lowest = torch.finfo(scores.dtype).min
    best = scores.clamp_min(lowest).masked_fill(~held, -torch.inf).argmax(-1, keepdim=True)  # [B, H, Mq, 1]
    if force is None:
        return must.scatter_(-1, best, True)
    force = force.expand(scores.shape)
    return must.scatter_(-1, best, ~(force & held).any(-1, keepdim=True)) | force


@lru_cache(maxsize=16)
def rounding(rows: int, device: torch.device) -> torch.Tensor:
    """How much of a block must fit into what is left of a row for it to be kept: fp64 ``[rows]`` in [0, 1).

    Multiples of the golden ratio fall evenly into it, so that together rows keep their share.
    """
    with torch.inference_mode(False):
        return (torch.arange(rows, device=device, dtype=torch.float64) * _GOLDEN + 0.5) % 1
