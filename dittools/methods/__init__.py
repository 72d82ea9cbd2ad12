"""The methods by name. A new one is a file here and a line in `METHODS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from dittools.methods import auto
from dittools.methods.adaspa import AdaSpa
from dittools.methods.attention_tile import AttentionTile
from dittools.methods.base import AttentionCall, Method, Plan, StayDense
from dittools.methods.clear import Clear
from dittools.methods.dense import Dense
from dittools.methods.draft import Draft
from dittools.methods.gna import GNA
from dittools.methods.jenga import Jenga
from dittools.methods.nabla import Nabla
from dittools.methods.oracle import Oracle
from dittools.methods.paro import PARO
from dittools.methods.radial import Radial
from dittools.methods.random_blocks import RandomBlocks
from dittools.methods.sparge import Sparge
from dittools.methods.sparse_vdit import SparseVDiT
from dittools.methods.sparsed import SparseD
from dittools.methods.sta import STA
from dittools.methods.svg import SVG
from dittools.methods.svg2 import SVG2
from dittools.methods.svg_ear import SVGEAR
from dittools.methods.todo import ToDo
from dittools.methods.vmoba import VMoBA
from dittools.methods.xattention import XAttention
from dittools.naming import unknown

__all__ = ["METHODS", "AttentionCall", "Method", "Plan", "StayDense", "create", "describe", "names", "options"]

STATIC = (GNA, STA, Clear, Radial, ToDo, AttentionTile)
_ONLINE = (SVG, SVG2, SVGEAR, AdaSpa, Draft, Jenga, Nabla, Sparge, SparseD, VMoBA, XAttention)
_PROFILED = (PARO, SparseVDiT)
_YARDSTICKS = (Oracle, RandomBlocks)

METHODS: dict[str, type[Method]] = {cls.name: cls for cls in (Dense, *_ONLINE, *STATIC, *_PROFILED, *_YARDSTICKS)}


def names() -> list[str]:
    """Every name that `Config.method` takes."""
    return ["auto", *METHODS]


def options(name: str) -> dict[str, tuple[Any, str]]:
    """Options of a method: name -> (default, help). "auto" has none: they belong to what it picks."""
    if name == "auto":
        return {}
    return {f.name: (f.default, f.metadata.get("help", "")) for f in dataclasses.fields(METHODS[name])}


def describe() -> list[tuple[str, str, dict[str, tuple[Any, str]]]]:
    """(name, one line, options) of every method, "auto" first."""
    lines = {"auto": auto.SUMMARY} | {name: cls.summary for name, cls in METHODS.items()}
    return [(name, line, options(name)) for name, line in lines.items()]


def create(name: str, given: Mapping[str, Any], also_known: Iterable[str] = ()) -> Method:
    """The method called ``name`` with these options; for "auto", the first of those that `auto.pick` picks from.

    Args:
        given: option values by name.
        also_known: names that are near misses too, when an option is unknown: the settings every method has.

    Raises:
        ValueError: for an unknown method or option (naming the nearest), or a bad option value.
    """
    if name not in names():
        raise ValueError(unknown("method", name, names(), listed="dittools methods"))
    for option in given:
        if option not in options(name):
            listed = f"dittools methods {name}"
            raise ValueError(unknown(f"option of method {name}", option, options(name), also_known, listed))
    return (auto.CANDIDATES[0] if name == "auto" else METHODS[name])(**given)
