"""Every measure of a video against a reference, as a table: its name, unit, direction, and when it cannot be had."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from dittools.quality.metrics import MS_SSIM_SIDE, SSIM_WINDOW, Score, ms_ssim, pair, psnr, ssim, temporal_psnr
from dittools.quality.perceptual import lpips, vmaf, why_not_lpips, why_not_vmaf, why_not_vmaf_of


@dataclass(frozen=True)
class Metric:
    """A measure.

    Args:
        name: key in tables and files. title: for people. unit: "dB" or "". digits: after the point, for people.
        higher_is_better: the direction.
        run: (video, reference), float `[T, H, W, 3]` in [0, 1] -> Score.
        why_not: (frames, height, width) -> None, or why it cannot be measured.
        meaning: what it measures, in a few words.
        why_not_of: the reference -> None, or why nothing can be measured against it.
    """

    name: str
    title: str
    unit: str
    digits: int
    higher_is_better: bool
    run: Callable[[Any, Any], Score]
    why_not: Callable[[int, int, int], str | None]
    meaning: str
    why_not_of: Callable[[torch.Tensor], str | None] = lambda reference: None


def _side(least: int) -> Callable[[int, int, int], str | None]:
    def why_not(frames: int, height: int, width: int) -> str | None:
        if min(height, width) < least:
            return f"frames of {height} x {width} are too small (at least {least} x {least})"
        return None

    return why_not


METRICS = (
    Metric("psnr", "PSNR", "dB", 2, True, psnr, lambda *size: None, "mean squared error of pixels, as a logarithm"),
    Metric("ssim", "SSIM", "", 4, True, ssim, _side(SSIM_WINDOW), "structure in small windows, up to 1"),
    Metric("ms_ssim", "MS-SSIM", "", 4, True, ms_ssim, _side(MS_SSIM_SIDE), "the same over five scales, up to 1"),
    Metric(
        "temporal_psnr",
        "temporal PSNR",
        "dB",
        2,
        True,
        temporal_psnr,
        lambda frames, *size: "one frame does not move" if frames < 2 else None,
        "PSNR of the changes from frame to frame: flicker lowers it",
    ),
    Metric(
        "lpips",
        "LPIPS",
        "",
        4,
        False,
        lpips,
        lambda frames, *size: why_not_lpips(*size),
        "distance of AlexNet features; 0 is identical",
    ),
    Metric(
        "vmaf",
        "VMAF",
        "",
        1,
        True,
        vmaf,
        lambda frames, *size: why_not_vmaf(*size),
        "a model of viewers' grades of 1080p brightness, up to 100",
        why_not_vmaf_of,
    ),
)
"""In the order in which they are shown."""


class Measured(NamedTuple):
    """Scores by name, and the measures left out with the reason."""

    scores: dict[str, Score]
    left_out: dict[str, str]


def measure(video: np.ndarray, reference: np.ndarray, device: str | None = None) -> Measured:
    """Everything that can be measured of two videos `[T, H, W, 3]`, uint8 or float in [0, 1].

    device: where torch computes; frames are moved there. By default a GPU where there is one.

    Raises ValueError when they differ in shape or are no videos.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    a, b = (_floats(torch.from_numpy(x).to(device)) for x in (video, reference))
    pair(a, b)  # raises for what no measure takes
    scores, left_out = {}, {}
    for metric in METRICS:
        reason = metric.why_not(*a.shape[:3]) or metric.why_not_of(b)
        if reason is None:
            try:
                scores[metric.name] = metric.run(a, b)
            except RuntimeError as error:  # a tool outside said no: the other measures still stand
                reason = str(error).splitlines()[0]
        if reason is not None:
            left_out[metric.name] = reason
    return Measured(scores, left_out)


def shown(metric: Metric, value: float | None) -> str:
    """A value for people: "28.41 dB", "identical" for an infinite PSNR, "-" for none."""
    if value is None:
        return "-"
    if value == float("inf"):
        return "identical"
    return f"{value:.{metric.digits}f}" + (f" {metric.unit}" if metric.unit else "")


def by_name() -> Mapping[str, Metric]:
    """The table by name."""
    return {metric.name: metric for metric in METRICS}


def _floats(x: torch.Tensor) -> torch.Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x
