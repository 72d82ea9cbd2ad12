"""The run record: what lies beside a video as JSON, and what `--json` prints; and the lines on stderr that end a run.

Its keys are a contract.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools.cli.control import Control
from dittools.cli.output import Output
from dittools.json_numbers import number
from dittools.naming import with_options
from dittools.provenance import device_facts, dittools_version, versions

SECONDS = ("load", "text", "denoise", "decode", "save")
SIZES = ("frames", "height", "width")


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
        request, opened, scene: of `dittools.cli.request` and `dittools.cli.generation`.
        seconds: one for each of SECONDS and "total".
        acceleration: `Acceleration.record()`.
        quality: `quality_facts`, where it was compared with dense.
        output: the video.
        output_sha256: digest of its file, by which a later run knows it again; None for a folder of frames.
        drawn: what of SIZES the pipeline decided.
    """

    command: list[str]
    request: Any
    opened: Any
    scene: Any
    config: Any
    seconds: dict[str, float]
    acceleration: dict[str, Any]
    quality: dict[str, Any] | None
    output: Path
    output_sha256: str | None = None
    drawn: dict[str, int] | None = None

    def record(self) -> dict[str, Any]:
        """Everything a reader needs to judge the run and to run it again."""
        found, shot = self.acceleration, self.scene.shot
        return {
            "dittools": dittools_version(),
            "versions": versions(),
            "command": self.command,
            "device": device_facts(self.opened.device),
            "model": self.request.family.name,
            "weights": self.opened.weights.name,
            "grid": found["grid"],
            "config": self.config.to_dict(),
            "prompt": self.scene.prompt,
            "negative_prompt": self.scene.negative_prompt,
            "seed": shot.seed,
            "steps": shot.steps,
            "seconds": {name: round(self.seconds.get(name, 0.0), 4) for name in (*SECONDS, "total")},
            **{name: found[name] for name in ("step_seconds", "sparsity", "calls", "kernels", "kernel_reasons")},
            **{name: found[name] for name in ("cache", "fallbacks", "attention_error")},
            "quality": self.quality,
            "output": str(self.output),
            "output_sha256": self.output_sha256,
            **{name: found[name] for name in ("method", "method_options", "correction")},
            "run": {
                **(self.drawn or {name: getattr(shot, name) for name in SIZES}),
                "fps": self.scene.fps,
                "guidance": shot.guidance,
                "dtype": self.opened.dtype,
                **{name: getattr(self.request.flags, name) for name in ("offload", "compile")},
            },
            "parallel": found.get("parallel"),
            **{name: found[name] for name in ("heads", "notes")},
            **self._task(),
        }

    def _task(self) -> dict[str, Any]:
        """What a whole call of a pipeline was asked for; a run in stages has none."""
        task = self.scene.task
        if task is None:
            return {}
        return {"task": {**task.facts(), "asked": task.asked_for(self.scene, self.request, self.opened.dtype)}}


def dense_facts(grid: Any, steps: int) -> dict[str, Any]:
    """What an acceleration would have told of a run that had none.

    Args:
        grid: a `dittools.tokens.TokenGrid`, where it is known.
    """
    return {
        "grid": grid and {name: getattr(grid, name) for name in ("frames", "height", "width", "text", "tokens")},
        "step_seconds": [],
        "sparsity": {
            **{"asked": None, "sparse_calls": None, "overall": 0.0, "per_step": [], "per_layer": []},
            **{"by_parts": {}, "pairs_by_parts": {}},
        },
        "calls": {"dense": None, "sparse": 0, "reused": 0},
        "kernels": {},
        "kernel_reasons": {},
        "cache": {"name": "none", "computed_steps": list(range(steps)), "reused_steps": []},
        "fallbacks": [],
        "attention_error": None,
        "method": "dense",
        "method_options": {},
        "correction": "none",
        "heads": [],
        "notes": [],
    }


def print_summary(record: dict[str, Any], record_path: Path, output: Output) -> None:
    """End a run with its summary on stderr, without the notes that were said before."""
    for line in summary_lines(record, record_path, said=output.notes):
        output.line(line)


def summary_lines(record: dict[str, Any], record_path: Path, said: Collection[str] = ()) -> list[str]:
    """The lines, from a run record, without the notes that were said before."""
    seconds, sparsity, calls, run = (record[key] for key in ("seconds", "sparsity", "calls", "run"))
    stages = ", ".join(f"{name} {seconds[name]:.1f}" for name in seconds if name != "total")
    frames = f"{run['frames']} frame{'s' * (run['frames'] != 1)}"
    lines = [
        f"{record['output']}: {frames} of {run['height']} x {run['width']}; record {record_path}",
        _skipped(with_options(record["method"], record["method_options"]), record["correction"], sparsity, calls),
        *_reused(record["cache"], calls),
        *_together(record.get("parallel")),
        *_estimated(record.get("attention_error")),
        f"seconds {seconds['total']:.1f} ({stages})",
    ]
    quality = record["quality"]
    if quality:
        psnr = "identical" if quality["psnr"] == "inf" else f"PSNR {quality['psnr']:.2f} dB"
        times = f"({seconds['denoise']:.1f} s, dense {quality['dense_denoise_seconds']:.1f} s)"
        told = f"{quality['speedup']:.2f}x as fast" if quality["speedup"] is not None else "with no speed-up to give"
        lines.append(f"against dense: {psnr}, SSIM {quality['ssim']:.4f}; denoising {told} {times}")
        if quality["speedup"] is None:
            lines.append(f"no speed-up is given: {quality['speedup_withheld']}")
    lines += [f"fallback: {entry['count']} calls ran dense: {entry['reason']}" for entry in record["fallbacks"]]
    return lines + [f"note: {note}" for note in record["notes"] if note not in said]


def _reused(cache: dict[str, Any], calls: dict[str, int]) -> list[str]:
    """What a cache saved, where one was on."""
    if cache["name"] == "none":
        return []
    computed, reused = len(cache["computed_steps"]), len(cache["reused_steps"])
    return [
        f"cache {cache['name']}: {computed} steps computed, {reused} reused; {calls['reused']} of "
        f"{calls['dense'] + calls['sparse'] + calls['reused']} attention calls saved"
    ]


def _together(parallel: dict[str, Any] | None) -> list[str]:
    """How ranks shared the video, where several did."""
    if not parallel:
        return []
    split = ", ".join(f"{name} {parallel[name]}" for name in ("cfg", "ulysses", "ring") if parallel[name] > 1)
    known = [one for one in parallel["density_by_rank"] if one is not None]
    sent = parallel["exchanged_bytes"]
    amount = f"{sent / 1e9:.2f} GB" if sent >= 1e8 else f"{sent / 1e6:.2f} MB"
    moved = f"{amount} exchanged in {parallel['exchange_seconds']:.2f} s"
    spread = f"; density {min(known):.3f} to {max(known):.3f} by rank" if known else ""
    return [f"{parallel['ranks']} ranks ({split}): {moved}{spread}"]


def _estimated(error: dict[str, Any] | None) -> list[str]:
    """How far sparse calls were from dense ones, where exact rows told it."""
    if error is None or error["overall"] is None:
        return []
    at = max(error["cells"], key=lambda cell: cell[2])
    return [
        f"sparse attention is {error['overall']:.2%} ± {error['uncertainty']:.2%} from exact, most in step {at[0]}, "
        f"layer {at[1]} ({at[2]:.2%}), by {error['rows']} exact rows a call"
    ]


def _skipped(method: str, correction: str, sparsity: dict[str, Any], calls: dict[str, int]) -> str:
    if calls["dense"] is None:
        return f"method {method}: the untouched pipeline, nothing skipped"
    counted = f"{calls['dense']} dense and {calls['sparse']} sparse attention calls"
    if not calls["sparse"]:
        return f"method {method}: {counted}, nothing skipped"
    if correction != "none":
        method += f" with {correction}"
    parts, own = sparsity.get("by_parts", {}), ""
    if len(parts) > 1:  # what was asked is of the picture; text is dense beside it
        own = f"{1 - parts['picture-picture']:.1%} of the picture's own pairs and "
    return (
        f"method {method}: skipped {own}{sparsity['sparse_calls']:.1%} in sparse calls "
        f"({sparsity['asked']:.0%} asked), {sparsity['overall']:.1%} overall; {counted}"
    )
