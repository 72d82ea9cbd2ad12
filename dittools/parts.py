"""Parts within parts: what a bench tells apart inside of what it times anyway."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Timed(Protocol):
    """A part that is being timed."""

    def inner(self, name: str) -> AbstractContextManager:
        """A part of it with a name of its own."""


OPEN: list[Timed] = []  # the parts that are being timed now, outermost first


def inner_part(name: str) -> AbstractContextManager:
    """Surrounds work that a bench counts by itself and not into the part around it; nothing else ever notices.

    Args:
        name: "order", which is making an order, or "permute", which is moving tokens into one.
    """
    return OPEN[-1].inner(name) if OPEN else nullcontext(name)
