"""Frames and clips as data URIs, small enough to lie in a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

AMPLIFIED = 4
_SIDE = 320


class Strip(NamedTuple):
    """One frame three times: dense, the case, and how they differ, amplified."""

    frame: int
    why: str
    images: tuple[str, str, str]


class Shown(NamedTuple):
    """What a page shows of a case. `clip` is a data URI, or None where the file is too large; `link` is the
    file, or None where there is none.
    """

    strips: list[Strip]
    clip: str | None
    link: str | None


def strips(frames: np.ndarray, reference: np.ndarray, psnr_per_frame: list[float]) -> list[Strip]:
    """The middle frame, and the one that is farthest from its reference. Frames are uint8 `[T, H, W, 3]`."""
    middle = len(frames) // 2
    places = {middle: "the middle"}
    if psnr_per_frame:
        worst = min(range(len(psnr_per_frame)), key=psnr_per_frame.__getitem__)
        places[worst] = "the middle, and the farthest from dense" if worst == middle else "the farthest from dense"
    return [
        Strip(n + 1, why, (image(reference[n]), image(frames[n]), image(difference(frames[n], reference[n]))))
        for n, why in places.items()
    ]


def difference(frame: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Absolute difference of two uint8 frames, times `AMPLIFIED`."""
    apart = np.abs(frame.astype(np.int16) - reference.astype(np.int16))
    return (apart * AMPLIFIED).clip(0, 255).astype(np.uint8)


def image(frame: np.ndarray) -> str:
    """A uint8 frame as a WebP data URI, at most `_SIDE` pixels wide and high."""
    from PIL import Image

    picture = Image.fromarray(frame)
    picture.thumbnail((_SIDE, _SIDE))
    data = io.BytesIO()
    picture.save(data, format="WEBP", quality=80, method=4)
    return _uri("image/webp", data.getvalue())


def clip(path: Path, most: int) -> str | None:
    """An mp4 file as a data URI, or None when it is missing or larger than `most` bytes."""
    try:
        data = path.read_bytes() if path.stat().st_size <= most else None
    except OSError:
        return None
    return None if data is None else _uri("video/mp4", data)


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
