"""The run record: what lies beside a video as JSON, and what `--json` prints. Its keys are a contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dittools.cli.control import Control
from dittools.numbers import number
from dittools.provenance import device_facts, dittools_version, versions

SECONDS = ("load", "text", "denoise", "decode", "save")


def quality_facts(
    psnr: Any, ssim: Any, dense_seconds: float, sparse_seconds: float, control: Control | None = None
) -> dict[str, Any]:
    """The `quality` entry, from two `dittools.quality.Score`s and the two denoise times.

    control: steps that both runs do dense; `speedup` is None, with the reason, where these took another time.
    """
    withheld = None if control is None else control.withheld
    return {
        "psnr": number(psnr.mean),
        "ssim": number(ssim.mean),
        "psnr_per_frame": [number(value) for value in psnr.per_frame],
        "dense_denoise_seconds": round(dense_seconds, 4),
        "speedup": None if withheld else round(dense_seconds / sparse_seconds, 4),
        "speedup_withheld": withheld,
        "control": None if control is None else control.facts(),
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
    output_sha256: str | None = None,
) -> dict[str, Any]:
    """Everything a reader needs to judge a run and to run it again.

    scene: a `dittools.cli.request.Scene`. run: size, fps and settings. seconds: one for each of SECONDS and
    "total". acceleration: `Acceleration.record()`. output_sha256: digest of the video's file, by which a later run
    knows it again; None for a folder of frames.
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
        "kernels": acceleration["kernels"],
        "kernel_reasons": acceleration["kernel_reasons"],
        "cache": acceleration["cache"],
        "fallbacks": acceleration["fallbacks"],
        "quality": quality,
        "output": str(output),
        "output_sha256": output_sha256,
        "method": acceleration["method"],
        "method_options": acceleration["method_options"],
        "correction": acceleration["correction"],
        "run": run,
        "heads": acceleration["heads"],
        "notes": acceleration["notes"],
    }
