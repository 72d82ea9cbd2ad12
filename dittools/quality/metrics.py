"""PSNR, SSIM and MS-SSIM of decoded frames against a reference, frame by frame.

Fidelity to another run of the same model, not beauty: both say how much the frames changed. Frames are in
[0, 1], so the peak is 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

SSIM_WINDOW = 11
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE = SSIM_WINDOW * 2 ** (len(_MS_SSIM_WEIGHTS) - 1)
"""The window must still fit after four halvings."""
_CHUNK = 16 << 20  # bytes of a video that a GPU measures at a time; a CPU takes frame by frame


class Score(NamedTuple):
    """A metric over one video: its mean and its value for each frame, in order of time."""

    mean: float
    per_frame: list[float]


def psnr(
    video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor, device: torch.device | str | None = None
) -> Score:
    """Peak signal-to-noise ratio in dB, peak 1.

    video, reference: `[T, H, W, C]` or `[B, T, H, W, C]`, float in [0, 1], the same shape. A batch is read
    as one long video. A frame equal to its reference scores inf. The mean is over the frames that differ (an
    infinite one would hide the others) and is inf only when every frame is equal.

    device: what measures, a few frames at a time; by default the one that holds the video.

    Raises ValueError for shapes that differ or are no videos, and for integer frames.
    """
    return _psnr(_chunks(*pair(video, reference), device))


def temporal_psnr(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> Score:
    """PSNR in dB, peak 1, of the differences between neighbouring frames: does it move as the reference does?

    Flicker lowers it, a change that stands still does not. One value for each frame after the first. Shapes and
    errors as in `psnr`; a video needs at least two frames.
    """
    a, b = pair(video, reference)
    if len(a) < 2:
        raise ValueError("temporal PSNR asked of one frame: it compares changes, and needs at least two")
    after, before = _chunks(a[1:], b[1:], None), _chunks(a[:-1], b[:-1], None)
    return _psnr((x - x0, y - y0) for (x, y), (x0, y0) in zip(after, before, strict=True))


def ssim(
    video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor, device: torch.device | str | None = None
) -> Score:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5, data range 1.

    The mean over channels and over every place where the whole window fits, as in the paper: torchmetrics gives the
    values, and its own mean also takes the padded edges. Shapes, device and errors as in `psnr`; frames must be at
    least 11 x 11 pixels.
    """
    return _by_frame(_similarity, "SSIM", SSIM_WINDOW, video, reference, device)


def ms_ssim(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> Score:
    """SSIM over five scales, each half the one before (Wang, Simoncelli and Bovik 2003), window as in `ssim`.

    The scales are put together here, for torchmetrics' own function takes padded edges into the mean of the smallest
    scale, where they are most of the picture. Shapes and errors as in `psnr`; frames
    must be at least 176 x 176 pixels.
    """
    return _by_frame(_multi_scale, "MS-SSIM", MS_SSIM_SIDE, video, reference)


def _similarity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM of each frame ``[T, C, H, W]``, where the window fits: ``[T]``."""
    edge = SSIM_WINDOW // 2
    _, everywhere = _structure(x, y, return_full_image=True)
    return everywhere[..., edge:-edge, edge:-edge].mean((1, 2, 3), dtype=torch.float64)


def _structure(x: torch.Tensor, y: torch.Tensor, **which: bool) -> tuple[torch.Tensor, torch.Tensor]:
    from torchmetrics.functional.image import structural_similarity_index_measure as measure

    return measure(x, y, data_range=1.0, reduction="none", **which)


def _multi_scale(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    value = x.new_ones(len(x), dtype=torch.float64)
    for weight in _MS_SSIM_WEIGHTS[:-1]:
        _, contrast = _structure(x, y, return_contrast_sensitivity=True)
        value = value * contrast.double().clamp(min=0) ** weight
        x, y = (torch.nn.functional.avg_pool2d(v, 2) for v in (x, y))
    return value * _similarity(x, y).clamp(min=0) ** _MS_SSIM_WEIGHTS[-1]


def _psnr(chunks: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Score:
    from torchmetrics.functional.image import peak_signal_noise_ratio as measure

    found = [measure(x.double(), y.double(), 1.0, reduction="none", dim=(1, 2, 3)) for x, y in chunks]
    values = torch.cat(found).tolist()
    return Score(mean_psnr(values), values)


def _chunks(
    a: torch.Tensor, b: torch.Tensor, device: torch.device | str | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few frames of both at a time on the device: at least fp32, and fp64 where convolutions would take TF32."""
    device = a.device if device is None else torch.device(device)
    frames = 1 if device.type == "cpu" else max(1, _CHUNK // (8 * a[0].numel()))
    wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    wide = torch.float64 if device.type == "cuda" else wide
    for x, y in zip(a.split(frames), b.split(frames), strict=True):
        yield x.to(device, wide), y.to(device, wide)


def mean_psnr(values: Iterable[float]) -> float:
    """Mean of PSNRs over those that are finite; inf when none is."""
    finite = [value for value in values if value != math.inf]
    return math.fsum(finite) / len(finite) if finite else math.inf


def _by_frame(
    measure: Callable, name: str, least: int, video: Any, reference: Any, device: torch.device | str | None = None
) -> Score:
    a, b = pair(video, reference)
    if min(a.shape[1:3]) < least:
        raise ValueError(
            f"{name} asked of frames of {a.shape[1]} x {a.shape[2]} pixels: its window needs at least {least} x {least}"
        )
    chunks = _chunks(a, b, device)
    found = [measure(*(frames.permute(0, 3, 1, 2) for frames in chunk)) for chunk in chunks]  # of [T, C, H, W]
    values = torch.cat(found).tolist()
    return Score(math.fsum(values) / len(values), values)


def pair(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as tensors `[T, H, W, C]` on the device of `video`, batches laid end to end."""
    a = torch.as_tensor(video).detach()
    b = torch.as_tensor(reference).detach().to(a.device)
    if a.shape != b.shape:
        raise ValueError(
            f"two videos of one shape are needed, found {_shape(a)} against the reference's {_shape(b)}: "
            "compare runs with the same frames, height and width"
        )
    if a.ndim not in (4, 5) or a.numel() == 0:
        raise ValueError(
            f"a video is [frames, height, width, channels], with or without a batch in front, found {_shape(a)}"
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ValueError(f"frames must be float in [0, 1], found {a.dtype} and {b.dtype}: divide by 255 first")
    return a.flatten(0, -4), b.flatten(0, -4)


def _shape(x: torch.Tensor) -> str:
    return "x".join(map(str, x.shape))
