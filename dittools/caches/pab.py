"""Pyramid attention broadcast: in the middle of a run, use what attention gave for a few steps.

Source: Zhao et al., "Real-Time Video Generation with Pyramid Attention Broadcast", arXiv 2408.12588. Only
self-attention is broadcast here. diffusers' own hook keeps one state for both guidance branches, so that one is
given the other's attention; here each branch has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dittools.caches.attention import AttentionCache, in_window
from dittools.caches.base import Trajectory, number


@dataclass(frozen=True)
class PyramidAttentionBroadcast(AttentionCache):
    """One computed step in ``interval`` within a window of timesteps."""

    name: ClassVar[str] = "pab"
    summary: ClassVar[str] = "reuse self-attention's outputs in the middle of the run (pyramid attention broadcast)"

    low: float = field(default=100, metadata={"help": "reuse above this timestep (of 1000)"})
    high: float = field(default=800, metadata={"help": "reuse below this timestep (of 1000)"})

    def __post_init__(self):
        super().__post_init__()
        number("low", self.low, -1)
        number("high", self.high, 0)

    def never(self) -> bool:
        return self.interval == 1

    def mask(self, run: Trajectory) -> list[bool]:
        return in_window(self.interval, self.low, self.high, run)
