"""Animated GIF and WebP that keep every frame.

Pillow merges neighbouring frames that are equal into one that is shown longer. So each frame is encoded by Pillow as a
picture of its own, and put into the file here (GIF89a; the WebP container specification, RFC 9649).
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

GIF_UNIT, WEBP_UNIT = 10, 1
"""Milliseconds that a frame's time is counted in."""
MOST_TIMES = 64
"""A file whose frames are shown more often than this on average is no video of one rate."""
_ROUNDS = 3
_WEBP = {"quality": 90, "method": 4}


def durations(count: int, fps: float, unit: int) -> list[int]:
    """Milliseconds of each frame in whole `unit`s, at least one, so that rounding never adds up along the video."""
    ends = [max(number, round(1000 * number / fps / unit)) * unit for number in range(count + 1)]
    return [end - start for start, end in pairwise(ends)]


def gif(images: Sequence[Image], milliseconds: Sequence[int], path: Path) -> None:
    """Write an endless GIF, 256 colours chosen for each frame. Raises OSError."""
    width, height = images[0].size
    with path.open("wb") as file:
        file.write(b"GIF89a" + struct.pack("<HHBBB", width, height, 0x70, 0, 0))
        file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")
        for image, time in zip(_encoded(images, "GIF", interlace=0), milliseconds, strict=True):
            file.write(b"\x21\xf9\x04\x04" + struct.pack("<HBB", time // GIF_UNIT, 0, 0))
            file.write(_gif_frame(image))
        file.write(b"\x3b")


def _gif_frame(data: bytes) -> bytes:
    """The image block of a GIF of one frame, with the file's colours as its own."""
    flags, at = data[10], 13
    colours = data[at : at + 3 * 2 ** (1 + flags % 8)] if flags & 0x80 else b""
    at += len(colours)
    while data[at : at + 1] == b"\x21":  # extensions: label, then parts that say their length, the last one 0
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    place, own = data[at : at + 9], data[at + 9]
    if own & 0x80 or not colours:
        return data[at:-1]
    return place + bytes([own & 0x40 | 0x80 | flags % 8]) + colours + data[at + 10 : -1]


def webp(images: Sequence[Image], milliseconds: Sequence[int], path: Path) -> None:
    """Write an endless WebP. Raises OSError."""
    size = b"".join(_three(side - 1) for side in images[0].size)
    parts = [_chunk(b"VP8X", b"\x02\0\0\0" + size), _chunk(b"ANIM", b"\0\0\0\0\0\0")]
    for image, time in zip(_encoded(images, "WEBP", **_WEBP), milliseconds, strict=True):
        head = _three(0) * 2 + size + _three(time) + b"\x02"  # drawn over what was there, not blended
        parts.append(_chunk(b"ANMF", head + image[12:]))
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 4 + sum(map(len, parts))) + b"WEBP")
        file.writelines(parts)


def at_one_rate(milliseconds: Sequence[int]) -> list[int] | None:
    """How often each frame of an animation is shown at one rate: 1, or more where equal frames were merged into one.

    None where the frames have no times, or one rate would take too many frames.
    """
    if not milliseconds or min(milliseconds) <= 0:
        return None
    shortest = min(milliseconds)
    short = [time for time in milliseconds if time < 1.5 * shortest]
    period = sum(short) / len(short)
    for _ in range(_ROUNDS):  # times are in whole units: long ones say more of the period than short ones
        counts = [max(1, round(time / period)) for time in milliseconds]
        period = sum(milliseconds) / sum(counts)
    if any(abs(time - count * period) > GIF_UNIT for time, count in zip(milliseconds, counts, strict=True)):
        unit = math.gcd(*map(int, milliseconds))  # no rate with times that were rounded: the one of exact times
        counts = [int(time) // unit for time in milliseconds]
    return counts if sum(counts) <= MOST_TIMES * len(counts) else None


def _encoded(images: Sequence[Image], kind: str, **how: int) -> Iterator[bytes]:
    """Every picture as a file of its own."""
    for image in images:
        data = io.BytesIO()
        image.save(data, format=kind, **how)
        yield data.getvalue()


def _three(value: int) -> bytes:
    return struct.pack("<I", value)[:3]


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
