"""Numbers in JSON files, which know no infinity; and shares of a run as whole steps."""

from __future__ import annotations

import math


def number(value: float | None) -> float | str | None:
    """A number that JSON can hold: "inf" for the PSNR of equal frames, null for what is no number."""
    if value is None or math.isfinite(value):
        return value
    return "inf" if value > 0 else None


def read_number(value: float | str | None) -> float | None:
    """What `number` wrote."""
    return math.inf if value == "inf" else value


def whole_steps(asked: float | int, steps: int) -> int:
    """How many of ``steps`` steps a share (float) or count (int) stands for."""
    if isinstance(asked, int):
        return min(asked, steps)
    return min(steps, max(1, int(asked * steps + 0.5))) if asked > 0 else 0
