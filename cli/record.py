"""The run record: what lies beside a video as JSON, and what `--json` prints. Its keys are a contract."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path
from typing import Any

from dittools.cli.versions import dittools_version, versions

SECONDS = ("load", "text", "denoise", "decode", "save")


def device_facts(device: Any) -> dict[str, Any]:
    """type, name and total memory of a torch device."""
    if device.type == "cuda":
        import torch

        found = torch.cuda.get_device_properties(device)
        return {"type": "cuda", "name": found.name, "memory_gb": round(found.total_memory / 1e9, 1)}
    return {"type": device.type, "name": _cpu_name(), "memory_gb": _ram_gb()}


def number(value: float | None) -> float | str | None:
    """A number that JSON can hold: "inf" for the PSNR of equal frames."""
    if value is None or math.isfinite(value):
        return value
    return "inf" if value > 0 else None


def quality_facts(psnr: Any, ssim: Any, dense_seconds: float, sparse_seconds: float) -> dict[str, Any]:
    """The `quality` entry, from two `dittools.quality.Score`s and the two denoise times."""
    return {
        "psnr": number(psnr.mean),
        "ssim": number(ssim.mean),
        "psnr_per_frame": [number(value) for value in psnr.per_frame],
        "dense_denoise_seconds": round(dense_seconds, 4),
        "speedup": round(dense_seconds / sparse_seconds, 4),
    }


def build(
    *,
    command: list[str],
    device: Any,
    model: str,
    weights: str,
    scene: Any,
    config: Any,
    run: dict[str, Any],
    seconds: dict[str, float],
    acceleration: dict[str, Any],
    quality: dict[str, Any] | None,
    output: Path,
) -> dict[str, Any]:
    """Everything a reader needs to judge a run and to run it again.

    scene: a `dittools.cli.request.Scene`. run: size, fps and settings. seconds: one for each of SECONDS and
    "total". acceleration: `Acceleration.record()`.
    """
    return {
        "dittools": dittools_version(),
        "versions": versions(),
        "command": command,
        "device": device_facts(device),
        "model": model,
        "weights": weights,
        "grid": acceleration["grid"],
        "config": config.to_dict(),
        "prompt": scene.prompt,
        "negative_prompt": scene.negative_prompt,
        "seed": scene.shot.seed,
        "steps": scene.shot.steps,
        "seconds": {name: round(seconds[name], 4) for name in (*SECONDS, "total")},
        "step_seconds": acceleration["step_seconds"],
        "sparsity": acceleration["sparsity"],
        "calls": acceleration["calls"],
        "cache": acceleration["cache"],
        "fallbacks": acceleration["fallbacks"],
        "quality": quality,
        "output": str(output),
        "method": acceleration["method"],
        "run": run,
        "heads": acceleration["heads"],
        "notes": acceleration["notes"],
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _ram_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None
