"""What caches have in common that reuse self-attention's outputs while everything around it runs.

Every attention call already comes by the runtime, so nothing is hooked: what is kept is per layer and branch, compiled
blocks keep their graphs, and projections, norms, cross-attention and feed-forward layers run with fresh inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from dittools.caches.base import Cache, Shapes, Trajectory, share_or_count, whole


@dataclass(frozen=True)
class AttentionCache(Cache):
    """A cache that reuses what self-attention gave, in some steps.

    Attributes:
        keeps: how many computed results of a layer and branch are held.
    """

    level: ClassVar[str] = "attention"
    keeps: ClassVar[int] = 1

    interval: int = field(default=2, metadata={"help": "one computed attention step in so many; 1 computes all"})
    first: float | int = field(default=1, metadata={"help": "steps at the start always computed, a share or a count"})
    last: float | int = field(default=1, metadata={"help": "steps at the end always computed, a share or a count"})

    def __post_init__(self):
        for name in ("first", "last"):
            share_or_count(name, getattr(self, name))
        whole("interval", self.interval, 1)

    def stand_in(self, kept: Sequence[torch.Tensor]) -> torch.Tensor:
        """A layer's output from kept ones, oldest first."""
        return kept[-1]

    def bytes_held(self, shapes: Shapes) -> int:
        """Bytes kept between calls, at most."""
        if self.interval == 1:
            return 0
        return shapes.bytes * self.keeps * shapes.lanes * shapes.layers * shapes.tokens * shapes.width


def in_window(interval: int, low: float, high: float, run: Trajectory) -> list[bool]:
    """Compute one step in ``interval`` while the timestep lies between ``low`` and ``high``, every step elsewhere."""
    mask, since = [], 0
    for step, must in enumerate(run.forced):
        inside = bool(run.timesteps) and low < run.timesteps[step] < high
        compute = must or not inside or since + 1 >= interval
        since = 0 if compute else since + 1
        mask.append(compute)
    return mask
