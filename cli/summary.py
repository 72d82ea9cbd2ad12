"""The few lines on stderr that end a run: what came out, what was skipped, how long it took, what it cost."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from dittools.cli.output import Output
from dittools.naming import with_options


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


def _skipped(method: str, correction: str, sparsity: dict[str, Any], calls: dict[str, int]) -> str:
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
