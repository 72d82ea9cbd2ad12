"""Finds the objects of a world video: saturated regions of one hue that persist over time.

Everything happens on a working grid of at least 128 pixels on the shorter side, made by averaging whole
pixels, which also takes away noise. Colour is seen as a 2-vector, the part of RGB that grey does not have:
its length says how saturated a pixel is, its direction is the hue. Shade and texture scale the vector and
leave the direction alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

GRID = 128
"""Least number of pixels on the shorter side of the working grid."""

LEAST_AREA = 0.0015
"""Mean area an object must have, in units of the shorter side squared; the world's smallest has 0.004."""

LEAST_PRESENCE = 0.4
"""Part of the frames an object must be seen in."""

LEAST_CORE = 0.1
"""Part of an object that must lie inside its outline pixels; specks of noise are all outline."""

_SATURATED = (0.18, 0.26)  # limits of the threshold between background (below 0.16) and objects (above 0.27)
_HUE_BINS = 180
_PATCH = 40
_NEIGHBOUR_HUE = math.radians(45)


@dataclass
class Found:
    """One object over time. Pixels are those of the working grid; NaN where the object is not seen."""

    hue: np.ndarray  # [2], unit vector
    centre: np.ndarray  # [T, 2], x and y in pixels
    area: np.ndarray  # [T], pixels
    patches: np.ndarray  # [T, P, P] in [0, 1]: cover of a square of 2 sqrt(area) a side around the centre

    @property
    def seen(self) -> np.ndarray:
        """Frames ``[T]`` in which the object is there."""
        return np.isfinite(self.area)


def pooling(height: int, width: int) -> int:
    """Pixels of a frame along a side of a pixel of the working grid."""
    return max(1, min(height, width) // GRID)


def to_grid(video: Any) -> np.ndarray:
    """A video ``[T, H, W, 3]`` (array or tensor, uint8 or in [0, 1]) as fp32 on the working grid."""
    frames = video.detach().cpu().numpy() if hasattr(video, "detach") else np.asarray(video)
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"The judge reads a video [T, H, W, 3], but was given shape {tuple(frames.shape)}.")
    whole = frames.dtype == np.uint8
    pool = pooling(frames.shape[1], frames.shape[2])
    height, width = frames.shape[1] // pool, frames.shape[2] // pool
    grid = np.empty((len(frames), height, width, 3), np.float32)
    for frame, out in zip(frames[:, : height * pool, : width * pool], grid, strict=True):  # one stays in the cache
        frame = frame.astype(np.float32, copy=False)
        frame = frame / 255.0 if whole else frame
        rows = sum(frame[i::pool] for i in range(pool))
        out[:] = sum(rows[:, i::pool] for i in range(pool)) / pool**2
    return grid


def chroma(rgb: np.ndarray) -> np.ndarray:
    """The colourful part ``[..., 2]`` of RGB ``[..., 3]``: red lies along the first axis."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    return np.stack((red - 0.5 * (green + blue), math.sqrt(0.75) * (green - blue)), -1)


def find(grid: np.ndarray, smooth: bool = False) -> list[Found]:
    """The objects of a video on the working grid ``[T, h, w, 3]``, the largest first.

    ``smooth`` averages 3 x 3 pixels beforehand, for a grid as fine as the video.
    """
    unit = min(grid.shape[1:3])
    colour = chroma(grid)
    if smooth:  # nothing was averaged: take the noise away here
        colour = _smooth(colour)
    strength = np.hypot(colour[..., 0], colour[..., 1])
    angle = np.arctan2(colour[..., 1], colour[..., 0])
    mask = strength > _threshold(strength)
    if mask.mean() * mask.shape[1] * mask.shape[2] < LEAST_AREA * LEAST_PRESENCE * unit**2:
        return []
    volumes = [
        volume for group in _hue_groups(angle, strength, mask) for volume in _persistent(group, LEAST_AREA * unit**2)
    ]
    volumes = _without_fringes(volumes, colour)
    taken = sum(volume.astype(np.uint8) for volume in volumes) if volumes else None
    return [_measure(colour, volume, (taken > 0) & ~volume) for volume in volumes]


def _smooth(colour: np.ndarray) -> np.ndarray:
    for axis in (1, 2):
        edge = [(0, 0)] * 4
        edge[axis] = (1, 1)
        wide = np.moveaxis(np.pad(colour, edge, mode="edge"), axis, 0)
        colour = np.moveaxis((wide[:-2] + wide[1:-1] + wide[2:]) / 3, 0, axis)
    return colour


def _threshold(strength: np.ndarray) -> float:
    """Otsu's threshold on the saturation, kept within what the palettes allow."""
    counts, edges = np.histogram(strength, bins=64, range=(0.0, 1.0))
    middle = (edges[1:] + edges[:-1]) / 2
    below, total = np.cumsum(counts), counts.sum()
    moment = np.cumsum(counts * middle)
    above = total - below
    valid = (below > 0) & (above > 0)
    gap = np.zeros_like(middle)
    means = moment[valid] / below[valid], (moment[-1] - moment[valid]) / above[valid]
    gap[valid] = below[valid] * above[valid].astype(float) * (means[0] - means[1]) ** 2
    return float(np.clip(edges[1:][gap.argmax()], *_SATURATED))


def _hue_groups(angle: np.ndarray, strength: np.ndarray, mask: np.ndarray) -> list[np.ndarray]:
    """Splits the saturated pixels at the valleys of their hue histogram; one mask a peak."""
    bins = ((angle + math.pi) * (_HUE_BINS / (2 * math.pi))).astype(np.int32) % _HUE_BINS
    histogram = np.bincount(bins[mask], weights=strength[mask], minlength=_HUE_BINS)
    offset = np.minimum(np.arange(_HUE_BINS), _HUE_BINS - np.arange(_HUE_BINS))
    smooth = np.fft.ifft(np.fft.fft(histogram) * np.fft.fft(np.exp(-0.5 * (offset / 2.5) ** 2))).real
    higher = (smooth >= np.roll(smooth, 1)) & (smooth > np.roll(smooth, -1))
    peaks = [int(p) for p in np.flatnonzero(higher & (smooth > 0.01 * smooth.max()))]
    peaks = _merge_peaks(smooth, peaks)
    distance = np.abs(np.arange(_HUE_BINS)[:, None] - np.array(peaks)[None])
    nearest = np.minimum(distance, _HUE_BINS - distance).argmin(1)
    group = nearest[bins]
    return [mask & (group == k) for k in range(len(peaks))]


def _merge_peaks(smooth: np.ndarray, peaks: list[int]) -> list[int]:
    """Drops the lower of two neighbouring peaks when hardly a valley lies between them."""
    while len(peaks) > 1:
        for i, first in enumerate(peaks):
            second = peaks[(i + 1) % len(peaks)]
            between = np.arange(first, first + (second - first) % _HUE_BINS + 1) % _HUE_BINS
            low = first if smooth[first] < smooth[second] else second
            if smooth[between].min() > 0.7 * smooth[low]:
                peaks = [p for p in peaks if p != low]
                break
        else:
            return peaks
    return peaks


def connected(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Labels ``0 .. n - 1`` (-1 outside) of the parts of a mask of any dimension that touch along an axis."""
    index = np.full(mask.shape, -1, np.int64)
    index[mask] = np.arange(int(mask.sum()))
    pairs = []
    for axis in range(mask.ndim):
        a = np.moveaxis(index, axis, 0)
        first, second = a[:-1], a[1:]
        both = (first >= 0) & (second >= 0)
        pairs.append(np.stack((first[both], second[both])))
    first, second = np.concatenate(pairs, 1)
    parent = np.arange(int(mask.sum()))
    while first.size:
        a, b = parent[first], parent[second]
        apart = a != b
        first, second, a, b = first[apart], second[apart], a[apart], b[apart]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        while not np.array_equal(grand := parent[parent], parent):
            parent = grand
    roots, compact = np.unique(parent, return_inverse=True)
    index[mask] = compact
    return index, len(roots)


def _persistent(mask: np.ndarray, least: float) -> list[np.ndarray]:
    """The parts of one hue that are large and last; parts that follow each other in time are one object."""
    labels, count = connected(mask)
    frames = mask.shape[0]
    rows, _, _ = np.nonzero(labels >= 0)
    area = np.zeros((count, frames), np.int64)  # [parts, T]
    np.add.at(area, (labels[labels >= 0], rows), 1)
    groups: list[list[int]] = []
    spans: list[np.ndarray] = []
    for part in np.argsort(-area.sum(1), kind="stable"):
        here = area[part] > 0.25 * least
        if not here.any():
            continue
        for group, span in zip(groups, spans, strict=True):
            if (span & here).sum() <= 0.1 * here.sum():
                group.append(int(part))
                span |= here
                break
        else:
            groups.append([int(part)])
            spans.append(here.copy())
    volumes = []
    for group, span in zip(groups, spans, strict=True):
        if span.mean() >= LEAST_PRESENCE and area[group].sum() / span.sum() >= least:
            volume = np.isin(labels, group)
            if (~grow(~volume, 1)).sum() > LEAST_CORE * volume.sum():
                volumes.append(volume)
    return volumes


def _without_fringes(volumes: list[np.ndarray], colour: np.ndarray) -> list[np.ndarray]:
    """Largest first, without the thin rims of a neighbouring hue that colour bleeding draws."""
    kept: list[np.ndarray] = []
    for volume in sorted(volumes, key=lambda v: -int(v.sum())):
        hue = _direction(colour[volume])
        for other in kept:
            near = math.acos(float(np.clip(hue @ _direction(colour[other]), -1, 1))) < _NEIGHBOUR_HUE
            inside = (grow(other, 3) & volume).sum() / volume.sum()
            if inside > 0.75 and (near or volume.sum() < 0.1 * other.sum()):
                break
        else:
            kept.append(volume)
    return kept


def _direction(vectors: np.ndarray) -> np.ndarray:
    mean = vectors.reshape(-1, 2).mean(0)
    return mean / max(float(np.hypot(*mean)), 1e-6)


def grow(mask: np.ndarray, steps: int) -> np.ndarray:
    """A mask ``[T, h, w]`` widened by ``steps`` pixels in every direction within each frame."""
    for _ in range(steps):
        for axis in (1, 2):
            wide = mask.copy()
            a, m = np.moveaxis(wide, axis, 0), np.moveaxis(mask, axis, 0)
            a[1:] |= m[:-1]
            a[:-1] |= m[1:]
            mask = wide
    return mask


def _measure(colour: np.ndarray, volume: np.ndarray, others: np.ndarray) -> Found:
    """Soft cover, centre, area and patches of the object that fills ``volume`` ``[T, h, w]``."""
    core = ~grow(~volume, 2)
    if core.sum() < 0.1 * volume.sum():
        core = volume
    hue = _direction(colour[core])
    plane = colour @ hue  # [T, h, w]
    near = grow(volume, 4)
    outside = plane[near & ~grow(volume, 2) & ~others]
    ground = float(np.median(outside)) if outside.size else 0.0
    dark = float(np.quantile(plane[core], 0.2))
    cover = np.clip((plane - ground) / max(dark - ground, 0.05), 0, 1)
    cover = np.where(near & ~others, cover, 0.0).astype(np.float32)
    area = cover.sum((1, 2))
    there = volume.any((1, 2)) & (area > 0.2 * np.median(area[volume.any((1, 2))]))
    weight = np.maximum(area, 1e-6)
    x = (cover.sum(1) * (np.arange(cover.shape[2]) + 0.5)).sum(1) / weight
    y = (cover.sum(2) * (np.arange(cover.shape[1]) + 0.5)).sum(1) / weight
    centre = np.where(there[:, None], np.stack((x, y), -1), np.nan)
    area = np.where(there, area, np.nan)
    return Found(hue, centre, area, _patches(cover, centre, area))


def patch_axis() -> np.ndarray:
    """Sample positions ``[P]`` along a side of a patch, in units of the square root of the area."""
    return ((np.arange(_PATCH) + 0.5) / _PATCH * 2 - 1).astype(np.float32)


def _patches(cover: np.ndarray, centre: np.ndarray, area: np.ndarray) -> np.ndarray:
    """Bilinear samples ``[T, P, P]`` of the cover around the centre, zeros where there is no object."""
    frames, height, width = cover.shape
    padded = np.pad(cover, ((0, 0), (1, 2), (1, 2)))
    reach = np.sqrt(np.nan_to_num(area))[:, None] * patch_axis()  # [T, P]
    x = np.clip(np.nan_to_num(centre[:, :1]) + reach + 0.5, 0, width + 1)
    y = np.clip(np.nan_to_num(centre[:, 1:]) + reach + 0.5, 0, height + 1)
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - left)[:, None, :], (y - top)[:, :, None]
    t = np.arange(frames)[:, None, None]
    l, r = left[:, None, :], left[:, None, :] + 1
    u, d = top[:, :, None], top[:, :, None] + 1
    upper = padded[t, u, l] * (1 - fx) + padded[t, u, r] * fx
    lower = padded[t, d, l] * (1 - fx) + padded[t, d, r] * fx
    return (upper * (1 - fy) + lower * fy) * np.isfinite(area)[:, None, None]
