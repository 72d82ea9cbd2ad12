"""Block maps and masks as small pictures."""

from __future__ import annotations

import io

import numpy as np
import torch

SIDE = 288
"""Pixels of a picture: a map of fewer blocks is enlarged, of more blocks is summed up."""
FLOOR = 2.0**-6
"""Mass, as a multiple of what attention to all alike would give, at which the colour scale begins."""
# From little to much; rises in lightness all the way, so that it also reads in grey.
_STOPS = np.array([[13, 16, 43], [60, 32, 110], [134, 44, 113], [205, 76, 82], [244, 146, 61], [252, 239, 164]])
_SKIPPED = np.array([176, 182, 189])


def map_image(mass: torch.Tensor, keep: torch.Tensor | None = None) -> np.ndarray:
    """Colours of a map ``[M, N]`` by the logarithm of its mass; blocks that ``keep`` drops are grey.

    Returns:
        uint8 ``[height, width, 3]``, a block at least a pixel, queries downwards.
    """
    value = mass.double().numpy()
    shown = np.ones_like(value) if keep is None else keep.double().numpy()
    factor = -(-max(value.shape) // SIDE)
    if factor > 1:
        value, shown = _pooled(value, factor), _pooled(shown, factor) / _pooled(np.ones_like(shown), factor)
    value = value / max(value.mean(), 1e-30)
    top = max(np.log2(value.max() / FLOOR), 1.0)
    level = np.clip(np.log2(np.maximum(value, FLOOR) / FLOOR) / top, 0, 1)
    place = level * (len(_STOPS) - 1)
    low = np.minimum(place.astype(int), len(_STOPS) - 2)
    part = (place - low)[..., None]
    colours = _STOPS[low] * (1 - part) + _STOPS[low + 1] * part
    colours = colours * shown[..., None] + _SKIPPED * (1 - shown[..., None])
    enlarge = max(1, SIDE // max(value.shape))
    return np.kron(colours.round().astype(np.uint8), np.ones((enlarge, enlarge, 1), np.uint8))


def png(picture: np.ndarray) -> bytes:
    """A uint8 picture as a PNG file."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG", optimize=True)
    return data.getvalue()


def _pooled(value: np.ndarray, factor: int) -> np.ndarray:
    rows, columns = (np.arange(0, size, factor) for size in value.shape)
    return np.add.reduceat(np.add.reduceat(value, rows, 0), columns, 1)
