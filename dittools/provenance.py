"""What a result stands on: versions and device. Read without importing anything heavy."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from dittools.version import __version__

PACKAGES = ("torch", "triton", "diffusers", "transformers")


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def dittools_version() -> str:
    """Of the code that runs, which in a checkout need not be what is installed."""
    return __version__


def versions() -> dict[str, str | None]:
    """Python and the packages a result depends on; None for what is not installed."""
    return {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def device_facts(device: Any) -> dict[str, Any]:
    """type, name and total memory of a torch device."""
    if device.type == "cuda":
        import torch

        found = torch.cuda.get_device_properties(device)
        return {"type": "cuda", "name": found.name, "memory_gb": round(found.total_memory / 1e9, 1)}
    return {"type": device.type, "name": _cpu_name(), "memory_gb": round(memory_bytes() / 1e9, 1)}


def power_limit_watts(device: Any) -> float | None:
    """The power limit of a CUDA device as nvidia-smi tells it; None where it does not."""
    if device.type != "cuda":
        return None
    import torch

    asked = ["nvidia-smi", "--query-gpu=uuid,power.limit", "--format=csv,noheader,nounits"]
    try:
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        return next(float(line.split(",")[1]) for line in lines if uuid in line)
    except (OSError, ValueError, AttributeError, StopIteration, IndexError, subprocess.SubprocessError):
        return None


def commit() -> str | None:
    """The commit of the checkout dittools runs from, with "+" where files differ from it; None without one."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != folder.resolve().parent:
            return None  # installed somewhere inside another project's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    """Main memory of this machine."""
    import psutil

    return psutil.virtual_memory().total
