"""The Gaussian windows of SSIM, in fp32 and one tap at a time: exact where a convolution would take TF32.

Variances do not change when brightness is shifted: counted from mid-grey, squares are small and fp32 holds them.
"""

from __future__ import annotations

import math

import torch

SSIM_WINDOW = 11
_SIGMA = 1.5
_C1, _C2 = 0.01**2, 0.03**2
_TAPS = [math.exp(-((i - SSIM_WINDOW // 2) ** 2) / (2 * _SIGMA**2)) for i in range(SSIM_WINDOW)]
_WEIGHTS = [tap / math.fsum(_TAPS) for tap in _TAPS]


def structure(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SSIM of frames in [0, 1] and its contrast-and-structure part, means over where the window fits.

    Args:
        x, y: ``[T, C, H, W]``.

    Returns:
        Two of fp64 ``[T]``.
    """
    planes = (plane.flatten(0, 1) for plane in (x, y))
    step = 1 if x.device.type == "cpu" else len(x) * x.shape[1]  # on a CPU a plane at a time stays in the cache
    found = [_structure(a, b) for a, b in zip(*(p.split(step) for p in planes), strict=True)]
    return tuple(torch.cat(part).unflatten(0, x.shape[:2]).mean(1) for part in zip(*found, strict=True))


def _structure(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`structure` of planes ``[N, H, W]``, each by itself: fp64 ``[N]``."""
    x, y = x - 0.5, y - 0.5
    mean_x, mean_y = blur(x), blur(y)
    squares, product = blur(x * x + y * y), blur(x * y)  # both squares are needed as a sum only
    both = mean_x * mean_y
    contrast = (product - both).mul_(2).add_(_C2)
    contrast /= squares.sub_(mean_x * mean_x + mean_y * mean_y).add_(_C2)
    mean_x += 0.5
    mean_y += 0.5
    light = (mean_x * mean_y).mul_(2).add_(_C1) / (mean_x * mean_x + mean_y * mean_y).add_(_C1)
    return tuple(part.mean((-1, -2), dtype=torch.float64) for part in (light * contrast, contrast))


def blur(x: torch.Tensor) -> torch.Tensor:
    """Planes under the window, where it fits: ``[N, H, W]`` -> ``[N, H - 10, W - 10]``."""
    for dim in (-2, -1):
        size = x.shape[dim] - SSIM_WINDOW + 1
        out = x.narrow(dim, 0, size) * _WEIGHTS[0]
        for tap in range(1, SSIM_WINDOW):
            out.add_(x.narrow(dim, tap, size), alpha=_WEIGHTS[tap])
        x = out
    return x
