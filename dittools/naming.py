"""How an unknown name is reported: what was asked, what is nearest, what there is."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(kind: str, asked: object, known: Iterable[str]) -> str:
    """One line for an error: the nearest known names when some are near, else all of them.

    >>> unknown("method", "svgg", ["auto", "dense", "svg"])
    "unknown method 'svgg': did you mean svg? known: auto, dense, svg"
    """
    names = sorted(known)
    folded = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(asked).lower(), folded, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(folded[name] for name in near)}? " if near else ""
    return f"unknown {kind} {asked!r}: {hint}known: {', '.join(names) or 'none'}"
