"""The run record: what lies beside a video as JSON, and what `--json` prints. Its keys are a contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools.cli.control import Control
from dittools.json_numbers import number
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


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a run was and gave, for its record.

    Args:
        command: the command line.
        model, weights: names of the family and of the weights.
        scene: a `dittools.cli.request.Scene`.
        run: size, fps and settings.
        seconds: one for each of SECONDS and "total".
        acceleration: `Acceleration.record()`.
        quality: `quality_facts`, where it was compared with dense.
        output: the video.
        output_sha256: digest of its file, by which a later run knows it again; None for a folder of frames.
    """

    command: list[str]
    device: Any
    model: str
    weights: str
    scene: Any
    config: Any
    run: dict[str, Any]
    seconds: dict[str, float]
    acceleration: dict[str, Any]
    quality: dict[str, Any] | None
    output: Path
    output_sha256: str | None = None

    def record(self) -> dict[str, Any]:
        """Everything a reader needs to judge the run and to run it again."""
        found, shot = self.acceleration, self.scene.shot
        return {
            "dittools": dittools_version(),
            "versions": versions(),
            "command": self.command,
            "device": device_facts(self.device),
            "model": self.model,
            "weights": self.weights,
            "grid": found["grid"],
            "config": self.config.to_dict(),
            "prompt": self.scene.prompt,
            "negative_prompt": self.scene.negative_prompt,
            "seed": shot.seed,
            "steps": shot.steps,
            "seconds": {name: round(self.seconds[name], 4) for name in (*SECONDS, "total")},
            **{name: found[name] for name in ("step_seconds", "sparsity", "calls", "kernels", "kernel_reasons")},
            **{name: found[name] for name in ("cache", "fallbacks")},
            "quality": self.quality,
            "output": str(self.output),
            "output_sha256": self.output_sha256,
            **{name: found[name] for name in ("method", "method_options", "correction")},
            "run": self.run,
            "parallel": found.get("parallel"),
            **{name: found[name] for name in ("heads", "notes")},
        }
