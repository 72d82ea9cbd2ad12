"""The step caches by name. A new one is a file here and a line in `CACHES`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dittools.caches.base import Cache, Lane, Model, Shapes, StepCall, Trajectory
from dittools.caches.easycache import EasyCache
from dittools.caches.fastercache import FasterCache
from dittools.caches.first_block import FirstBlock
from dittools.caches.magcache import MagCache
from dittools.caches.pab import PyramidAttentionBroadcast
from dittools.caches.sea import Sea
from dittools.caches.taylorseer import TaylorSeer
from dittools.caches.teacache import TeaCache
from dittools.naming import name_and_options, spelt, unknown

__all__ = [
    "CACHES",
    "Cache",
    "Lane",
    "Model",
    "Shapes",
    "StepCall",
    "Trajectory",
    "create",
    "describe",
    "names",
    "options",
    "read",
]

NONE = "none"
CACHES: dict[str, type[Cache]] = {
    cls.name: cls
    for cls in (TeaCache, FirstBlock, MagCache, TaylorSeer, EasyCache, PyramidAttentionBroadcast, FasterCache, Sea)
}


def names() -> list[str]:
    """Every name that `Config.cache` takes."""
    return [NONE, *CACHES]


def options(name: str) -> dict[str, tuple[Any, str]]:
    """Options of a cache: name -> (default, help)."""
    if name == NONE:
        return {}
    return {f.name: (f.default, f.metadata.get("help", "")) for f in dataclasses.fields(CACHES[name])}


def describe() -> list[tuple[str, str, dict[str, tuple[Any, str]]]]:
    """(name, one line, options) of every cache, "none" first."""
    lines = {NONE: "compute every step"} | {name: cls.summary for name, cls in CACHES.items()}
    return [(name, line, options(name)) for name, line in lines.items()]


def create(name: str, given: Mapping[str, Any]) -> Cache | None:
    """The cache called ``name`` with these options; None for "none".

    Raises:
        ValueError: for an unknown cache or option (naming the nearest), or a bad option value.
    """
    if name not in names():
        raise ValueError(unknown("cache", name, names(), listed="dittools caches"))
    if given and name == NONE:
        raise ValueError(f"cache is none, and options of one are given ({', '.join(given)}): name the cache")
    for option in given:
        if option not in options(name):
            raise ValueError(unknown(f"option of cache {name}", option, options(name), listed="dittools caches"))
    return None if name == NONE else CACHES[name](**given)


def read(text: str) -> tuple[str, dict[str, Any]]:
    """``"teacache:threshold=0.1:max_skips=3"`` -> ("teacache", {"threshold": 0.1, "max_skips": 3}).

    Raises:
        ValueError: when an option has no value, or two.
    """
    name, options = name_and_options(text, "cache")
    return spelt(name, names()), options
