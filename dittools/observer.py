"""What watchers of the runtime see of a call."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.clock import StepInfo
from dittools.tokens import TokenGrid


class AttentionEvent(NamedTuple):
    """One self-attention call as a watcher sees it: before anything is decided of it, dense or sparse."""

    layer: int
    q: torch.Tensor  # [B, S, H, D], as are k and v
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    step_info: StepInfo
    grid: TokenGrid
