"""How names are told and read: one with its options, and an unknown one with what is nearest and what there is."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

_ROOM = 120
"""Letters for the names that are known."""
_LONGEST = 100
"""Letters of a name that are looked at for what is near: none is as long."""


def with_options(name: str, options: Mapping[str, Any]) -> str:
    """A name for people, with option values in brackets where there are any.

    >>> with_options("adaspa", {"rows": 8, "search_at": (0.2, 0.6)})
    'adaspa (rows=8, search_at=0.2 0.6)'
    >>> with_options("svg", {})
    'svg'
    """
    told = ", ".join(f"{option}={_told(value)}" for option, value in options.items())
    return f"{name} ({told})" if told else name


def _told(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def name_and_options(text: str, what: str) -> tuple[str, dict[str, Any]]:
    """``"svg2:iterations=2"`` -> ("svg2", {"iterations": 2}).

    Args:
        what: the name is of, for the error: "cache", "method".

    Raises:
        ValueError: when an option has no value, or two.
    """
    name, *parts = re.split(r":(?=[\w-]+(?:=|:|$))", text)
    found: dict[str, Any] = {}
    for part in parts:
        option, equals, value = part.partition("=")
        if not equals or not value:
            raise ValueError(f"a {what}'s options are name:option=value:option=value, got {text!r}")
        option = option.replace("-", "_")
        if option in found:
            raise ValueError(f"option {option} is given twice in {shortened(text)}: give it once")
        found[option] = value_of(value)
    return name, found


def spelt(name: Any, known: Iterable[str]) -> Any:
    """A name as it is known, where it differs by capitals alone; else as it is.

    >>> spelt("SVG", ["dense", "svg"])
    'svg'
    """
    folded = {other.lower(): other for other in known}
    return folded.get(name.lower(), name) if isinstance(name, str) else name


def value_of(text: str) -> Any:
    """What a flag says: a number or true/false where the text is one, else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (int, float, bool)) else text


def shortened(asked: object, most: int = 40) -> str:
    """What was asked, in quotes and not longer than fits into a line of an error.

    >>> shortened("x" * 50, 10)
    "'xxxxx...'"
    """
    text = repr(asked)
    return text if len(text) <= most else f"{text[: most - 4]}...{text[0]}"


def unknown(kind: str, asked: object, known: Iterable[str], elsewhere: Iterable[str] = (), listed: str = "") -> str:
    """One line for an error: the nearest names when some are near, and what is known as far as it fits into a line.

    Args:
        kind: what the names are of.
        elsewhere: names of another kind, which may have been meant too.
        listed: the command that lists all.

    >>> unknown("method", "svgg", ["auto", "dense", "svg"])
    "unknown method 'svgg': did you mean svg? known: auto, dense, svg"
    """
    names = sorted(known)
    folded = {name.lower(): name for name in (*names, *elsewhere)}
    near = difflib.get_close_matches(str(asked).lower()[:_LONGEST], folded, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(folded[name] for name in near)}? " if near else ""
    return f"unknown {kind} {shortened(asked)}: {hint}{_known(names, listed)}"


def _known(names: list[str], listed: str) -> str:
    text = f"known: {', '.join(names) or 'none'}"
    if len(text) <= _ROOM:
        return text
    if listed:
        return f"`{listed}` lists all {len(names)}"
    fitting = [name for end, name in enumerate(names, 1) if len(", ".join(names[:end])) <= _ROOM - len("known: ")]
    return f"known: {', '.join(fitting)} and {len(names) - len(fitting)} more"
