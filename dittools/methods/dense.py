"""No method: every call runs dense, and the record still says what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dittools.methods.base import Method


@dataclass(frozen=True)
class Dense(Method):
    """Dense attention as the untouched pipeline runs it; the runtime never asks it for a plan."""

    name: ClassVar[str] = "dense"
    knows_heads: ClassVar[bool] = True
    summary: ClassVar[str] = "every call dense: the pipeline as it was, with steps timed"

    def why_not(self, grid, block_size: int) -> str | None:
        return None
