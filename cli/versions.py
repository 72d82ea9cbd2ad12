"""Versions of what a run stands on, read from package metadata without importing anything."""

from __future__ import annotations

import platform
from importlib import metadata

PACKAGES = ("torch", "triton", "diffusers", "transformers")


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def dittools_version() -> str:
    return version_of("dittools") or "unknown"


def versions() -> dict[str, str | None]:
    """Python and the packages a result depends on; None for what is not installed."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}
