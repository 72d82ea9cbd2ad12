"""PSNR and SSIM of decoded frames against a reference, frame by frame.

Fidelity to another run of the same model, not beauty: both say how much the frames changed. Frames are in
[0, 1], so the peak is 1.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch

# SSIM slides an 11 x 11 Gaussian window, padded by reflection, over each frame.
_SSIM_WINDOW = 11


class Score(NamedTuple):
    """A metric over one video: its mean and its value for each frame, in order of time."""

    mean: float
    per_frame: list[float]


def psnr(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> Score:
    """Peak signal-to-noise ratio in dB, peak 1.

    video, reference: `[T, H, W, C]` or `[B, T, H, W, C]`, float in [0, 1], the same shape. A batch is read
    as one long video. A frame equal to its reference scores inf. The mean is over the frames that differ (an
    infinite one would hide the others) and is inf only when every frame is equal.

    Raises ValueError for shapes that differ or are no videos, and for integer frames.
    """
    a, b = _frames(video, reference)
    errors = [(x.double() - y.double()).square().mean().item() for x, y in zip(a, b, strict=True)]
    values = [math.inf if error == 0 else -10 * math.log10(error) for error in errors]
    finite = [value for value in values if value != math.inf]
    return Score(math.fsum(finite) / len(finite) if finite else math.inf, values)


def ssim(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> Score:
    """Structural similarity (Wang et al. 2004): 11 x 11 Gaussian window of sigma 1.5, data range 1.

    Shapes and errors as in `psnr`; frames must be at least 11 x 11 pixels.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as measure

    a, b = _frames(video, reference)
    if min(a.shape[1:3]) < _SSIM_WINDOW:
        raise ValueError(
            f"SSIM asked of frames of {a.shape[1]} x {a.shape[2]} pixels: its window needs at least "
            f"{_SSIM_WINDOW} x {_SSIM_WINDOW}"
        )
    values = []
    for x, y in zip(a, b, strict=True):  # one frame at a time: the windowed copies are large
        x, y = (frame.float().permute(2, 0, 1)[None] for frame in (x, y))  # [1, C, H, W]
        values.append(float(measure(x, y, data_range=1.0)))
    return Score(math.fsum(values) / len(values), values)


def _frames(
    video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as CPU tensors `[T, H, W, C]`, batches laid end to end."""
    a, b = (torch.as_tensor(x).detach().cpu() for x in (video, reference))
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
