"""Checks of option values, each one line that says what was asked and what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def one_of(name: str, value: Any, known: Sequence[str]) -> None:
    """Raises ValueError when ``value`` is none of the known words."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def share(name: str, value: Any, *, optional: bool = True) -> None:
    """Raises ValueError when ``value`` is no number in (0, 1]; None is fine where ``optional``."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value <= 1:
        raise ValueError(f"{name} must be a number above 0 and at most 1, got {value!r}")


def whole(name: str, value: Any, least: int) -> None:
    """Raises ValueError when ``value`` is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def flag(name: str, value: Any) -> None:
    """Raises ValueError when ``value`` is neither True nor False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}")
