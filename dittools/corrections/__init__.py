"""The corrections by name: what makes up for skipped pairs. A new one is a file here and a line in `CORRECTIONS`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dittools.corrections.base import Corrected, Correction, SparseCall
from dittools.corrections.centroids import Centroids
from dittools.corrections.rettention import Rettention
from dittools.naming import unknown

__all__ = ["CORRECTIONS", "Corrected", "Correction", "SparseCall", "create", "describe", "names", "options"]

CORRECTIONS: dict[str, type[Correction]] = {cls.name: cls for cls in (Rettention, Centroids)}


def names() -> list[str]:
    """Every name that `Config.correction` takes."""
    return ["none", *CORRECTIONS]


def options(name: str) -> dict[str, tuple[Any, str]]:
    """Options of a correction: name -> (default, help)."""
    fields = dataclasses.fields(CORRECTIONS[name]) if name in CORRECTIONS else ()
    return {f.name: (f.default, f.metadata.get("help", "")) for f in fields}


def describe() -> list[tuple[str, str, dict[str, tuple[Any, str]]]]:
    """(name, one line, options) of every correction, "none" first."""
    lines = {"none": "what is skipped is lost"} | {name: cls.summary for name, cls in CORRECTIONS.items()}
    return [(name, line, options(name)) for name, line in lines.items()]


def create(name: str, given: Mapping[str, Any]) -> Correction | None:
    """The correction called ``name`` with these options; None for "none".

    Raises:
        ValueError: for an unknown correction or option (naming the nearest), or a bad option value.
    """
    if name not in names():
        raise ValueError(unknown("correction", name, names(), listed="dittools methods"))
    if given and name == "none":
        raise ValueError(f"correction is none, and options of one are given ({', '.join(given)}): name the correction")
    for option in given:
        if option not in options(name):
            raise ValueError(unknown(f"option of correction {name}", option, options(name)))
    return CORRECTIONS[name](**given) if name in CORRECTIONS else None
