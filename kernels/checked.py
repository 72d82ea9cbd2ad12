"""Which kernels have proved themselves on which cards: a kernel that never ran on a card is not chosen there.

The table, ``checked.json``, is written by ``dittools bench kernel --check`` and shipped with the package. An entry
counts for one compute capability, one minor version of Triton and the very source that was checked.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("checked.json")
CHECK = "dittools bench kernel --check"
# What decides the machine code and the launch of each kernel that has to prove itself.
SOURCES = {
    "hopper": ("hopper.py", "hopper_variants.py", "hopper_forward.py"),
    "hopper-64": ("hopper.py", "hopper_variants.py", "hopper_forward.py"),  # its tiles of 64 rows
    "hopper-clusters": (
        "hopper_clusters.py", "hopper_clusters_forward.py", "hopper_clusters_lists.py", "hopper.py",
        "hopper_forward.py", "clustered_triton.py",
    ),
    "hopper-mass": (
        "hopper_mass.py", "hopper_mass_forward.py", "block_mass_triton.py", "hopper.py", "hopper_forward.py",
    ),
}  # fmt: skip

# Kinds of calls of which an entry has a speed: attention's, and those of block mass.
SAID = {
    "raster": "without an order",
    "ordered": "with an order",
    "two passes": "in two passes",
    "one pass": "with the LSE known",
}


def why_unchecked(
    implementation: str, capability: str, ordered: bool | None = None, *, call: str | None = None
) -> str | None:
    """None when a kernel was found right on this type of card and not slower than what runs otherwise; else the reason.

    Args:
        implementation: a key of `SOURCES`.
        capability: compute capability, as "9.0".
        ordered: whether the call has an order; None asks whether the kernel pays for any kind of call.
        call: the kind of call, one of `SAID`, for kernels that take no order.
    """
    known = [e for e in entries(TABLE) if (e["implementation"], e["capability"]) == (implementation, capability)]
    if not known:
        return f"not yet checked on this card type ({capability}): run {CHECK}"
    known = [e for e in known if e["source"] == fingerprint(implementation)]
    if not known:
        return f"changed since it was checked on this card type ({capability}): run {CHECK}"
    triton = triton_minor()
    known = [e for e in known if e["triton"] == triton]
    if not known:
        return f"not yet checked with Triton {triton} on this card type ({capability}): run {CHECK}"
    gain = known[-1]["speedup_over_triton"]
    kinds = (call,) if call is not None else tuple(gain)
    if ordered is not None:
        kinds = ("ordered" if ordered else "raster",)
    if max(gain[kind] for kind in kinds) >= 1:
        return None
    found = " and ".join(f"{gain[kind]:.2f}x {SAID[kind]}" for kind in kinds)
    return f"slower than triton on this card type ({capability}): {found}"


def enter(entry: dict[str, Any], table: Path | None = None) -> None:
    """Put an entry into the table, in place of those of the same kernel, card type and Triton.

    Args:
        entry: "implementation", "capability", "source", "triton", and "speedup_over_triton" with a number for each
            kind of call, "raster" and "ordered" of attention; what else it has says where it comes from.

    Raises:
        OSError: when the table cannot be written.
    """
    table = table or TABLE
    same = ("implementation", "capability", "triton")
    kept = [e for e in entries(table) if any(e[name] != entry[name] for name in same)]
    part = table.with_name(f".{table.name}.part")
    part.write_text(json.dumps({"entries": [*kept, entry]}, indent=1) + "\n")
    part.replace(table)
    entries.cache_clear()


@cache
def entries(table: Path) -> list[dict[str, Any]]:
    """What the table holds."""
    return json.loads(table.read_text())["entries"] if table.exists() else []


@cache
def fingerprint(implementation: str) -> str:
    """A hash of a kernel's source."""
    found = hashlib.sha256()
    for name in SOURCES[implementation]:
        found.update(Path(__file__).with_name(name).read_bytes())
    return found.hexdigest()[:16]


@cache
def triton_minor() -> str:
    """Triton's version as "3.6"; "none" where it is not installed."""
    try:
        return ".".join(importlib.metadata.version("triton").split(".")[:2])
    except importlib.metadata.PackageNotFoundError:
        return "none"
