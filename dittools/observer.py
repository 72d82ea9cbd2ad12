"""What may watch the runtime at work: nothing by default, or a bench that times parts and checks results."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch

from dittools.clock import Tick
from dittools.methods.base import Plan
from dittools.parts import OPEN
from dittools.stopwatch import Stopwatch
from dittools.tokens import TokenGrid

Timing = tuple[str, str | None, Stopwatch]  # name, name of the part around it


class Heard(NamedTuple):
    """One self-attention call as a watcher hears it: before anything is decided of it, dense or sparse."""

    layer: int
    q: torch.Tensor  # [B, S, H, D], as are k and v
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    tick: Tick
    grid: TokenGrid


class Observer:
    """Watches nothing. The runtime tells it of every part of a sparse call."""

    def part(self, name: str) -> AbstractContextManager:
        """Surrounds one part of a sparse call: "select", "lists", "attention", "correct" or "check"; what is inside
        of one and counts by itself is an `inner_part`.
        """
        return nullcontext(name)

    def attended(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan, scale: float, out: torch.Tensor
    ) -> None:
        """The attention of a sparse call is done; tensors are ``[B, S, H, D]``."""


class PartTimes(Observer):
    """Times the parts on the device, without waiting for it until the times are read.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._watches: list[Timing] = []

    def part(self, name: str) -> AbstractContextManager:
        return _Part(name, self._device, self._watches)

    def seconds(self) -> dict[str, float]:
        """Sum of each part over all calls so far, without the parts within it, which count by themselves."""
        found: dict[str, float] = {}
        for name, around, watch in self._watches:
            found[name] = found.get(name, 0.0) + watch.seconds
            if around is not None:
                found[around] = found.get(around, 0.0) - watch.seconds
        return found


class _Part:
    """One stretch of a part; ``around`` names the part that it is taken out of."""

    def __init__(self, name: str, device: torch.device, watches: list[Timing], around: str | None = None):
        self._name, self._device, self._watches, self._around = name, device, watches, around

    def inner(self, name: str) -> AbstractContextManager:
        return _Part(name, self._device, self._watches, self._name)

    def __enter__(self) -> None:
        self._mine = Stopwatch(self._device)
        self._watches.append((self._name, self._around, self._mine))
        OPEN.append(self)

    def __exit__(self, *error: object) -> None:
        OPEN.remove(self)
        self._mine.stop()
