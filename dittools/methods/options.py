"""Option values checked: what is wrong with one is said in a line."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def axes(name: str, value: Any, *, auto: bool = False) -> tuple[int, int, int] | str:
    """Frames, rows and columns, from one whole number for all three, or three of at least 1.

    Args:
        auto: whether "auto" is a value too.

    Raises:
        ValueError: for anything else.
    """
    if auto and value == "auto":
        return value
    given = [value] * 3 if isinstance(value, Integral) else value
    whole = isinstance(given, (list, tuple)) and len(given) == 3 and all(_is_whole(x) for x in given)
    if not whole:
        raise ValueError(
            f"{name} must be {'`auto`, ' if auto else ''}a whole number of at least 1, or three of them for frames, "
            f"rows and columns, got {value!r}"
        )
    return tuple(int(x) for x in given)


def number(name: str, value: Any, least: float = 0.0) -> float | str:
    """ "auto" or a finite number of at least ``least``.

    Raises:
        ValueError: for anything else.
    """
    if value == "auto":
        return value
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < least:
        raise ValueError(f"{name} must be `auto` or a number of at least {least:g}, got {value!r}")
    return float(value)


def switch(name: str, value: Any, *, auto: bool = False) -> bool | str:
    """True or False, or "auto" where that is a value.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, bool) or (auto and value == "auto"):
        return value
    raise ValueError(f"{name} must be {'`auto`, ' if auto else ''}True or False, got {value!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1
