"""Pyramid attention broadcast: in the middle of a run, use what attention gave for a few steps.

Source: Zhao et al., "Real-Time Video Generation with Pyramid Attention Broadcast", arXiv 2408.12588. Only
self-attention is broadcast here. diffusers' own hook keeps one state for both guidance branches, so that one is
given the other's attention; here each branch has its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dittools.caches.attention import AttentionCache, in_window
from dittools.caches.options import option
from dittools.caches.state import Trajectory


@dataclass(frozen=True)
class PyramidAttentionBroadcast(AttentionCache):
    """One computed step in ``interval`` within a window of timesteps."""

    name: ClassVar[str] = "pab"
    summary: ClassVar[str] = "reuse self-attention's outputs in the middle of the run (pyramid attention broadcast)"

    low: float = option(100, "reuse above this timestep (of 1000)", kind="number", min=-1)
    high: float = option(800, "reuse below this timestep (of 1000)", kind="number", min=0)

    def never(self) -> bool:
        return self.interval == 1

    def mask(self, run: Trajectory) -> list[bool]:
        return in_window(self.interval, self.low, self.high, run)
