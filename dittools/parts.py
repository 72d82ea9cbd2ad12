"""Seconds of the parts of a sparse call, and of the parts within them: nothing is timed unless somebody collects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from dittools.stopwatch import Stopwatch

_OPEN: ContextVar[tuple[PartTimes, str | None] | None] = ContextVar("dittools_part", default=None)
"""Who collects in this thread, and the name of the part that is open there."""


class PartTimes:
    """Collects the parts that its thread runs inside of ``with``; other threads never notice.

    Args:
        device: where the work is done. It is waited for only when the times are read.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._timings: list[tuple[str, str | None, Stopwatch]] = []  # name, name of the part around it

    def __enter__(self) -> PartTimes:
        self._token = _OPEN.set((self, None))
        return self

    def __exit__(self, *error: object) -> None:
        _OPEN.reset(self._token)

    def seconds(self) -> dict[str, float]:
        """Sum of each part over all calls so far, without the parts within it, which count by themselves."""
        found: dict[str, float] = {}
        for name, around, watch in self._timings:
            found[name] = found.get(name, 0.0) + watch.seconds
            if around is not None:
                found[around] = found.get(around, 0.0) - watch.seconds
        return found

    def _begin(self, name: str, around: str | None) -> Stopwatch:
        self._timings.append((name, around, Stopwatch(self._device)))
        return self._timings[-1][2]


@contextmanager
def part(name: str) -> Iterator[None]:
    """Surrounds a part of a sparse call, and counts by itself inside of another one.

    Args:
        name: "select", "lists", "attention", "correct" or "check"; within "select", "order", which is making an order,
            and "permute", which is moving tokens into one.
    """
    found = _OPEN.get()
    if found is None:
        yield
        return
    times, around = found
    watch, token = times._begin(name, around), _OPEN.set((times, name))
    try:
        yield
    finally:
        _OPEN.reset(token)
        watch.stop()
