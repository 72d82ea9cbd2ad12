"""Options that several caches have."""

from __future__ import annotations

from typing import Any

from dittools.options import AUTO, option

__all__ = [
    "AUTO",
    "cooldown_option",
    "max_skips_option",
    "option",
    "profile_option",
    "threshold_option",
    "warmup_option",
]


def threshold_option(default: float | str) -> Any:
    """How much may change until a step is computed."""
    return option(
        default, _help("how much may change before a step is computed; 0: none", default), kind="number", min=0
    )


def warmup_option(default: float | int | str) -> Any:
    """Warm-up steps."""
    return option(default, _help("steps at the start always computed, a share or a count", default), kind="steps")


def cooldown_option(default: float | int | str) -> Any:
    """Cool-down steps."""
    return option(default, _help("steps at the end always computed, a share or a count", default), kind="steps")


def max_skips_option(default: int | str) -> Any:
    """The longest run of reused steps."""
    return option(default, _help("most steps reused in a row; 0: no limit", default), kind="count", min=0)


def profile_option() -> Any:
    """What was measured on a model."""
    return option("", "JSON of dittools calibrate --cache; empty: what ships for the model", kind="file")


def _help(text: str, default: Any) -> str:
    return f"{text}; auto: the profile's" if default == AUTO else text
