"""What a sparse call costs besides attention: order, selection, lists, permutes and correction, each by itself."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dittools.attention import attend
from dittools.kernels.choice import choose
from dittools.kernels.timing import once
from dittools.methods.base import Plan
from dittools.parts import PartTimes

# What is not attention itself. "check", which looks for numbers that are not finite, belongs to no method.
COSTS = ("order", "select", "lists", "permute", "correct")
# One call's parts move with the clock of the card by a few percent: medians of so many calls, and pairs of attention.
CALLS, PAIRS = 5, 5


class Unordered:
    """Times the attention of every sparse call again: with its order, and with the same mask in raster order.

    Put it among the result watchers. A kernel may walk an order while it attends, or copy tokens there and back: the
    difference is what moving costs.

    Attributes:
        ordered, raster: seconds of all calls that have an order; of each, the median of some taken in turn.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.ordered = self.raster = 0.0

    def __call__(self, call, taken, plan: Plan, out, sample) -> None:
        if plan.keys is not None or (plan.order is None and plan.key_order is None):
            return
        kernel = choose(*taken, plan.mask, order=plan.order)
        bare = dataclasses.replace(plan, order=None, key_order=None, pack=None)
        found: dict[str, list[float]] = {"ordered": [], "raster": []}
        for _ in range(1 + PAIRS):
            for name, one in (("ordered", plan), ("raster", bare)):
                attending = partial(attend, *taken, one, call.scale, kernel, sample=sample)
                found[name].append(once(attending, self._device) / 1000)
        # A kernel may have been compiled in the first pair.
        self.ordered += statistics.median(found["ordered"][1:])
        self.raster += statistics.median(found["raster"][1:])

    @property
    def moving(self) -> float:
        """Share of the seconds of ordered attention that its order costs."""
        return max(0.0, 1 - self.raster / self.ordered) if self.ordered else 0.0


def measure(runtime: Any, forward: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Parts of a sparse call in steady state, one that comes after others of its run: medians of ``CALLS``.

    Args:
        runtime: of an acceleration whose first call is over.
        forward: makes one call.

    Returns:
        ``parts``, seconds over all layers, ``parts_of_seconds``, of the call they are of, and ``costs``, parts as
        shares of the seconds of attention alone.
    """
    seconds, calls = [], []
    for _ in range(1 + CALLS):
        with PartTimes(device) as times:
            seconds.append(once(forward, device) / 1000)
        calls.append(times.seconds())
    # What follows the first call may be another kernel: that one does not count.
    names = dict.fromkeys(name for call in calls[1:] for name in call)
    parts = {name: statistics.median(call.get(name, 0.0) for call in calls[1:]) for name in names}
    again = Unordered(device)
    runtime.result_watchers.append(again)
    try:
        forward()
    finally:
        runtime.result_watchers.remove(again)
    moving = again.moving * min(again.ordered, parts["attention"])
    parts["attention"] -= moving
    if moving or "permute" in parts:
        parts["permute"] = parts.get("permute", 0.0) + moving
    return {"parts": parts, "parts_of_seconds": statistics.median(seconds[1:]), "costs": shares(parts)}


def shares(parts: dict[str, float]) -> dict[str, float]:
    """What a method costs besides attention, as shares of its attention; ``all`` of them together."""
    found = {name: parts[name] / parts["attention"] for name in COSTS if name in parts}
    return {**found, "all": sum(found.values())}
