"""Names the motion of one object from its track: centre, radius and angle over time.

All movements are compared in one measure, how far the outline moves in units of the object's radius, and
the most visible one that is above the threshold wins. Movements of the centre are told apart by which
model explains the track: a straight line, hops, or a circle.
"""

from __future__ import annotations

import math

import numpy as np

FULL_CLIP = 33
VISIBLE = 0.20
"""Least movement of the outline in a clip of 33 frames or more, in radii; in proportion in shorter ones."""

_HOP_PERIODS = np.geomspace(0.85, 1.8, 27)  # seconds; the world's is 1.25
_ORBIT_PERIODS = np.geomspace(1.3, 3.0, 15)  # seconds; the world's is 2.0
_SPIN_SPEED = (math.radians(50), math.radians(320))  # per second; the world's is 144 degrees
_SPIN_WEIGHT = 0.4  # part of the outline's movement along itself that the eye notices


def name_motion(
    centre: np.ndarray, radius: np.ndarray, angle: np.ndarray, clarity: np.ndarray, fps: float
) -> tuple[str, float]:
    """The motion's name and how far it is above the threshold (1 is just visible; for still, 1 - strength).

    ``centre`` ``[T, 2]`` (x, y) and ``radius`` ``[T]`` share a unit and are NaN where the object is not seen,
    ``angle`` ``[T]`` is in radians, ``clarity`` ``[T]`` says in [0, 1] how well the angle is known.
    """
    seen = np.isfinite(radius)
    frames = len(radius)
    if seen.sum() < 4:
        return "still", 0.0
    time = np.flatnonzero(seen) / fps
    span = (frames - 1) / fps
    size = float(np.median(radius[seen]))
    visible = VISIBLE * min(1.0, (frames - 1) / (FULL_CLIP - 1))
    path, moved = _path(centre[seen] / size, time, span)
    swell = _slope(time, radius[seen]) * span / size
    turned = _turned(angle[seen], clarity[seen], time) * _SPIN_WEIGHT
    strengths = {
        path: moved / visible,
        "grow" if swell > 0 else "shrink": abs(swell) / visible,
        "spin": turned / visible,
    }
    best = max(strengths, key=lambda name: strengths[name])
    if strengths[best] < 1:
        return "still", 1 - strengths[best]
    return best, strengths[best]


def _slope(time: np.ndarray, value: np.ndarray) -> float:
    t = time - time.mean()
    return float((t * (value - value.mean())).sum() / (t * t).sum())


def _path(track: np.ndarray, time: np.ndarray, span: float) -> tuple[str, float]:
    """What the centre ``[T, 2]`` does, and how far it gets (in the track's unit)."""
    centred = track - track.mean(0)
    total = float((centred**2).sum())
    slopes = np.array([_slope(time, track[:, axis]) for axis in (0, 1)])
    axis = int(np.abs(slopes).argmax())
    name = (("left", "right"), ("up", "down"))[axis][int(slopes[axis] > 0)]
    line = abs(float(slopes[axis])) * span
    along = centred[:, axis] - (time - time.mean()) * slopes[axis]
    rest = float((along**2).sum() + (centred[:, 1 - axis] ** 2).sum())
    hop_rest, hop = _hops(centred, time)
    round_rest, round_ = _circle(centred, time)
    # A line needs no period and no phase: it wins unless another model leaves far less unexplained.
    if rest <= max(2.5 * min(hop_rest, round_rest), 0.03 * total) or total == 0:
        return name, line
    return ("bounce", hop) if hop_rest <= round_rest else ("orbit", round_)


def _hops(track: np.ndarray, time: np.ndarray) -> tuple[float, float]:
    """What hopping up and down leaves unexplained, and the height of the hops."""
    phases = np.linspace(0, 1, 24, endpoint=False) if time[-1] - time[0] > 1.25 else np.zeros(1)
    period, phase = np.meshgrid(_HOP_PERIODS, phases, indexing="ij")
    wave = np.abs(np.sin(math.pi * (time[:, None] / period.ravel() + phase.ravel())))  # [T, models]
    wave -= wave.mean(0)
    y = track[:, 1]
    norm = np.maximum((wave**2).sum(0), 1e-9)
    gain = (y[:, None] * wave).sum(0) / norm
    rest = (y**2).sum() - gain**2 * norm
    best = int(rest.argmin())
    return float(rest[best] + (track[:, 0] ** 2).sum()), abs(float(gain[best]))


def _circle(track: np.ndarray, time: np.ndarray) -> tuple[float, float]:
    """What a circle leaves unexplained, and its diameter."""
    z = track[:, 0] + 1j * track[:, 1]
    best = (float("inf"), 0.0)
    for period in _ORBIT_PERIODS:
        for sign in (1, -1):
            wave = np.exp(sign * 2j * math.pi * time / period)
            wave = wave - wave.mean()
            norm = float((np.abs(wave) ** 2).sum())
            gain = (z * wave.conj()).sum() / max(norm, 1e-9)
            rest = float((np.abs(z - gain * wave) ** 2).sum())
            best = min(best, (rest, 2 * abs(gain)))
    return best


def _turned(angle: np.ndarray, clarity: np.ndarray, time: np.ndarray) -> float:
    """How far a steady turn goes, in radians; 0 where the angle is unclear or wanders."""
    steps = np.diff(angle) / np.diff(time)
    speed = float(np.median(steps))
    agree = float((np.sign(steps) == np.sign(speed)).mean())
    if not _SPIN_SPEED[0] <= abs(speed) <= _SPIN_SPEED[1] or agree < 0.75 or np.median(clarity) < 0.02:
        return 0.0
    return abs(speed) * float(time[-1] - time[0])
