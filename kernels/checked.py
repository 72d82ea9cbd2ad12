"""Which kernels have proved themselves on which cards: a kernel that never ran on a card is not chosen there.

Two tables say so. ``checked.json`` is written by ``dittools bench kernel --check`` and shipped with the package: an
entry counts for one compute capability, one minor version of Triton and the very source that was checked. The user's,
``kernels.json`` in the cache folder, holds what short proofs at first use found (`first_use`): an entry counts for one
card by name, one version of Triton and the source.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
from functools import cache
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("checked.json")
CHECK = "dittools bench kernel --check"
FOLDER = "DITTOOLS_CACHE"  # the environment variable that names the cache folder
# What decides the machine code and the launch of each kernel that has to prove itself.
_BLOCKS = (
    "block_sparse/hopper.py", "block_sparse/hopper_variants.py", "block_sparse/hopper_forward.py",
    "block_sparse/sample_tiles.py", "block_sparse/sample_tiles_triton.py", "hopper_parts.py", "hopper_launch.py",
    "gluon_names.py", "strides.py",
)  # fmt: skip
SOURCES = {
    "hopper": _BLOCKS,
    "hopper-64": _BLOCKS,  # its tiles of 64 rows
    "hopper-clusters": (
        "clusters/hopper.py", "clusters/hopper_forward.py", "clusters/hopper_lists.py", "clusters/runs.py",
        "hopper_parts.py", "hopper_launch.py", "gluon_names.py", "strides.py",
    ),
    "hopper-mass": (
        "block_mass/hopper.py", "block_mass/hopper_forward.py", "block_mass/triton.py", "triton_parts.py",
        "hopper_parts.py", "hopper_launch.py", "gluon_names.py",
    ),
}  # fmt: skip

SLOWER = "slower than triton"
# Kinds of calls of which an entry has a speed: attention's, and those of block mass.
SAID = {
    "raster": "without an order",
    "ordered": "with an order",
    "two passes": "in two passes",
    "one pass": "with the LSE known",
}


def why_unchecked(
    implementation: str,
    capability: str,
    ordered: bool | None = None,
    *,
    call: str | None = None,
    card: str | None = None,
) -> str | None:
    """None when a kernel was found right on this type of card and not slower than what runs otherwise; else the reason.

    Args:
        implementation: a key of `SOURCES`.
        capability: compute capability, as "9.0".
        ordered: whether the call has an order; None asks whether the kernel pays for any kind of call.
        call: the kind of call, one of `SAID`, for kernels that take no order.
        card: the card's name; with None the user's table does not count.
    """
    entry = find(implementation, capability, card)
    if entry is None:
        return _why_no_entry(implementation, capability)
    return why_not_by(entry, ordered, call=call)


def why_not_by(entry: dict[str, Any], ordered: bool | None = None, *, call: str | None = None) -> str | None:
    """What an entry says of a kind of call, as `why_unchecked`."""
    if "failed" in entry:
        return f"its proof at first use failed on this card ({entry['failed']}): run {CHECK} for the whole of it"
    gain = entry["speedup_over_triton"]
    kinds = (call,) if call is not None else tuple(gain)
    if ordered is not None:
        kinds = ("ordered" if ordered else "raster",)
    if max(gain[kind] for kind in kinds) >= 1:
        return None
    found = " and ".join(f"{gain[kind]:.2f}x {SAID[kind]}" for kind in kinds)
    return f"{SLOWER} on this card type ({entry['capability']}): {found}"


def find(implementation: str, capability: str, card: str | None = None) -> dict[str, Any] | None:
    """The entry that counts for this kernel's source and this Triton: the package's own, else the user's."""
    same = {"implementation": implementation, "source": fingerprint(implementation)}
    shipped = {**same, "capability": capability, "triton": triton_minor()}
    own = {**same, "device": card, "triton": triton_version()}
    for table, wanted in ((TABLE, shipped), (user_table(), own)):
        if table is None or (card is None and table is not TABLE):
            continue
        known = [e for e in entries(table) if all(e.get(name) == value for name, value in wanted.items())]
        if known:
            return known[-1]
    return None


def _why_no_entry(implementation: str, capability: str) -> str:
    known = [e for e in entries(TABLE) if (e["implementation"], e["capability"]) == (implementation, capability)]
    if not known:
        return f"not yet checked on this card type ({capability}): run {CHECK}"
    if not [e for e in known if e["source"] == fingerprint(implementation)]:
        return f"changed since it was checked on this card type ({capability}): run {CHECK}"
    return f"not yet checked with Triton {triton_minor()} on this card type ({capability}): run {CHECK}"


def enter(entry: dict[str, Any], table: Path | None = None) -> None:
    """Put an entry into a table, in place of those of the same kernel, card type and Triton; in the user's, of the same
    card and source as well.

    Args:
        entry: "implementation", "capability", "source", "triton", and "speedup_over_triton" with a number for each
            kind of call, "raster" and "ordered" of attention, or "failed" with the reason; what else it has says where
            it comes from.
        table: the package's when None, where one card stands for its type.

    Raises:
        OSError: when the table cannot be written.
    """
    table = table or TABLE
    same = ("implementation", "capability", "triton") + (("device", "source") if table != TABLE else ())
    kept = [e for e in entries(table) if any(e.get(name) != entry.get(name) for name in same)]
    part = table.with_name(f".{table.name}.{os.getpid()}.part")
    try:
        part.write_text(json.dumps({"entries": [*kept, entry]}, indent=1) + "\n")
        part.replace(table)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def entries(table: Path) -> list[dict[str, Any]]:
    """What a table holds; nothing where it is missing. One that cannot be read or is damaged counts as empty."""
    try:
        changed = table.stat()
    except OSError:
        return []
    return _read(table, changed.st_mtime_ns, changed.st_size, changed.st_ino)


@cache
def _read(table: Path, *_changed: int) -> list[dict[str, Any]]:
    try:
        found = json.loads(table.read_text())["entries"]
        return [entry for entry in found if isinstance(entry, dict)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def user_table() -> Path | None:
    """The user's table, in `cache_folder`; None where there is no such folder to name."""
    folder = cache_folder()
    return None if folder is None else folder / "kernels.json"


def cache_folder() -> Path | None:
    """Where dittools keeps what it found on this machine: DITTOOLS_CACHE, else "dittools" in XDG_CACHE_HOME or
    ~/.cache; None without a home."""
    if named := os.environ.get(FOLDER):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    if base and Path(base).is_absolute():
        return Path(base) / "dittools"
    try:
        return Path.home() / ".cache" / "dittools"
    except RuntimeError:
        return None


@cache
def fingerprint(implementation: str) -> str:
    """A hash of a kernel's source."""
    found = hashlib.sha256()
    for name in SOURCES[implementation]:
        found.update((Path(__file__).parent / name).read_bytes())
    return found.hexdigest()[:16]


@cache
def triton_version() -> str:
    """Triton's version as "3.6.0"; "none" where it is not installed."""
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"


def triton_minor() -> str:
    """Triton's version as "3.6"; "none" where it is not installed."""
    return ".".join(triton_version().split(".")[:2])
