"""Reads shape, colour and motion of every object from a video of the embedded world, without any network.

Only for videos without camera motion: a panning or zooming camera moves and grows what stands still.
Clips of 17 frames or more show every motion (half a turn of an orbit, most of a hop). In 9 frames a bounce is
still on its way up and is read as ``up``.

    python -m dittools.training.judge --videos 256 --seed 7 --json accuracy.json
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import judge_motion, judge_objects, judge_shapes, world

_HUES = {name: judge_objects.chroma(np.array(rgb)) for name, rgb in world.RGB.items()}
_SIDE_TO_RADIUS = 0.65
"""Radius over square root of the area, in the middle of the six shapes."""

UNCLEAR = "unclear"
LEAST_MATCH = 0.85
"""Soft Dice coefficient below which a shape is unclear; ground truth stays above 0.95 even when spoiled."""


@dataclass
class Sighting:
    """One object as it was read. Lengths are in units of the shorter frame side, origin in the middle."""

    shape: str  # of vocabulary.SHAPES, or UNCLEAR
    colour: str
    motion: str
    centre: np.ndarray  # [T, 2], x to the right and y down, NaN where the object is not seen
    area: np.ndarray  # [T]
    confidence: dict[str, float] = field(default_factory=dict)


def read(video: Any, fps: float = 16) -> list[Sighting]:
    """The objects in a video ``[T, H, W, 3]`` (uint8 or in [0, 1]), largest and most persistent first.

    Confidences: for shape the match and its lead over the second best, for colour the lead in
    degrees of hue over the second nearest colour, for motion how many times it exceeds the least visible
    movement (for still, 1 less that ratio).

    Raises ValueError where the shape is not that of a video.
    """
    grid = judge_objects.to_grid(video)
    smooth = grid.shape[1:3] == tuple(np.shape(video)[1:3])
    sightings = [_name(found, grid.shape[1:3], fps) for found in judge_objects.find(grid, smooth)]
    return sorted(sightings, key=lambda s: -float(np.nansum(s.area)))


def _name(found: judge_objects.Found, size: tuple[int, int], fps: float) -> Sighting:
    unit = min(size)
    seen = found.seen
    matches = judge_shapes.match(found.patches[seen], found.area[seen])
    order = np.argsort(-matches)
    shape = int(order[0])
    colour, colour_lead = _nearest_colour(found.hue)
    angle, clarity = np.zeros(len(seen)), np.zeros(len(seen))
    angle[seen], clarity[seen] = judge_shapes.turns(found.patches[seen], shape)
    radius = _SIDE_TO_RADIUS * np.sqrt(found.area)
    motion, strength = judge_motion.name_motion(found.centre, radius, angle, clarity, fps)
    return Sighting(
        shape=voc.SHAPES[shape] if matches[shape] >= LEAST_MATCH else UNCLEAR,
        colour=colour,
        motion=motion,
        centre=(found.centre - np.array([size[1], size[0]]) / 2) / unit,
        area=found.area / unit**2,
        confidence={
            "shape": float(matches[order[0]] - matches[order[1]]),
            "match": float(matches[order[0]]),
            "colour": colour_lead,
            "motion": strength,
        },
    )


def _nearest_colour(hue: np.ndarray) -> tuple[str, float]:
    """The palette colour nearest in hue, and its lead over the second in degrees."""
    apart = {}
    for name, vector in _HUES.items():
        cosine = float(hue @ vector) / (math.hypot(*hue) * math.hypot(*vector))
        apart[name] = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
    first, second = sorted(apart, key=lambda name: apart[name])[:2]
    return first, apart[second] - apart[first]


def score(video: Any, things: list[voc.Thing], fps: float = 16) -> dict[str, Any]:
    """Compares a video ``[T, H, W, 3]`` with the objects asked for.

    Returns ``objects`` (for each asked object booleans ``shape``, ``colour``, ``motion``; all false where it
    is missing), ``assigned`` (for each the number of its sighting in `read`'s list, or None), ``asked``,
    ``found``, ``missing``, ``extra`` and ``count`` (as many found as asked).
    """
    return compare(read(video, fps), things)


def compare(sightings: list[Sighting], things: list[voc.Thing]) -> dict[str, Any]:
    """`score` for a video that was read already.

    Only as many sightings as objects were asked for take part, the largest and most persistent ones, so that
    extra objects cannot help. Among these the assignment with most attributes right is taken.
    """
    candidates: list[Sighting | None] = list(sightings[: len(things)])
    candidates += [None] * (len(things) - len(candidates))
    table = [[_agreement(thing, sighting) for sighting in candidates] for thing in things]
    orders = itertools.permutations(range(len(candidates)))
    best = max(orders, key=lambda order: sum(sum(table[i][j].values()) for i, j in enumerate(order)))
    found = len(sightings)
    return {
        "objects": [table[i][j] for i, j in enumerate(best)],
        "assigned": [j if candidates[j] else None for j in best],
        "asked": len(things),
        "found": found,
        "missing": max(0, len(things) - found),
        "extra": max(0, found - len(things)),
        "count": found == len(things),
    }


def _agreement(thing: voc.Thing, sighting: Sighting | None) -> dict[str, bool]:
    if sighting is None:
        return {"shape": False, "colour": False, "motion": False}
    return {
        "shape": sighting.shape == voc.SHAPES[thing.shape],
        "colour": sighting.colour == voc.COLOURS[thing.colour],
        "motion": sighting.motion == voc.MOTIONS[thing.motion],
    }
