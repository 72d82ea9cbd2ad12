"""Recognises what dittools wrote, by what it says of itself: nothing else may be replaced. Needs no PyTorch."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from dittools import files

MOST_JSON_BYTES = 64 << 20  # a file from elsewhere may say anything, and be of any size
MOST_PLANS_BYTES = 512 << 20  # of long runs with a plan for every call
_OTHER_KINDS = ("dittools_profile", "kind", "schema", "rows", "case")  # of dittools, and no record of a video


def record(path: Path, output: Path) -> dict[str, Any] | None:
    """The run record in a file, where it is one of `output`; else None."""
    found = _object(path)
    if found is None or not isinstance(found.get("dittools"), str) or any(name in found for name in _OTHER_KINDS):
        return None
    written = found.get("output", output.name)
    same = isinstance(written, str) and Path(written).stem == output.stem
    return found if same else None


def video(path: Path, record_path: Path) -> bool:
    """Whether a file is the video that the record beside it tells of, as it was written.

    Records of older versions have no digest: the name counts there.
    """
    found = record(record_path, path)
    if found is None or Path(found.get("output", "")).name != path.name:
        return False
    return found.get("output_sha256") in (None, files.sha256(path))


def sound(path: Path, record_path: Path, output: Path) -> bool:
    """Whether a file is the sound that the record of a video beside it tells of, as it was written."""
    found = (record(record_path, output) or {}).get("task")
    told = found.get("sound") if isinstance(found, dict) else None
    return isinstance(told, dict) and told.get("file") == path.name and told.get("sha256") == files.sha256(path)


def profile(path: Path) -> dict[str, Any] | None:
    """The JSON of a profile of `dittools calibrate`, for methods or for caches; None for any other file."""
    found = _object(path)
    if found is None:
        return None
    methods = found.get("kind") == "attention" and "dittools_profile" in found
    caches = found.get("kind") == "cache" and "schema" in found and "match" in found
    return found if methods or caches else None


def plans(path: Path) -> dict[str, Any] | None:
    """The JSON of plans of `dittools export`; None for any other file."""
    found = _object(path, MOST_PLANS_BYTES)
    return found if found is not None and found.get("kind") == "plans" and "dittools_plans" in found else None


KINDS = {"profile": profile, "plans": plans}


def tables(path: Path, json_path: Path, kind: str = "profile") -> bool:
    """Whether a file holds the tables of the profile or plans beside it, as they were written.

    Profiles of older versions have no digest: that they list tables counts there.
    """
    found, name = KINDS[kind](json_path), "arrays" if kind == "profile" else "tables"
    return bool(found and found.get(name)) and found.get(f"{name}_sha256") in (None, files.sha256(path))


def _object(path: Path, most: int = MOST_JSON_BYTES) -> dict[str, Any] | None:
    """The JSON object in a file, if it holds one."""
    with contextlib.suppress(OSError, ValueError):
        if path.stat().st_size <= most:
            found = files.parse_json(files.read_text(path))
            return found if isinstance(found, dict) else None
    return None
