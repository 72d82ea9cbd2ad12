"""Tells the six shapes apart by comparison with drawn templates, and reads how far an object is turned."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch

from dittools.pipelines.embedded import vocabulary as voc
from dittools.training import world
from dittools.training.judge_objects import patch_axis

FOLDS = {"circle": 0, "square": 4, "triangle": 3, "star": 5, "ring": 0, "cross": 4}
"""Rotations that leave a shape as it is; 0 where every one does."""

_TURN_STEP = 5.0  # degrees between templates
_BLURS = (0.03, 0.08, 0.14)  # softness of the outline, in units of the square root of the area
_SCALES = (0.88, 0.94, 1.0, 1.06)


@cache
def _templates() -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Templates ``[M, P * P]`` in [0, 1], and for each its (shape, variant of blur and scale)."""
    axis = torch.from_numpy(patch_axis())
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    fine = torch.linspace(-1.3, 1.3, 521)
    fine_y, fine_x = torch.meshgrid(fine, fine, indexing="ij")
    pictures, kinds = [], []
    for shape, name in enumerate(voc.SHAPES):
        inside = world.shape_distance(fine_x, fine_y, shape) < 0
        side = math.sqrt(float(inside.float().mean()) * (521 / 520 * 2.6) ** 2)  # sqrt of the area at radius 1
        fold = FOLDS[name]
        turns = torch.arange(0, 360 / fold, _TURN_STEP).deg2rad() if fold else torch.zeros(1)
        for variant, (blur, scale) in enumerate((b, s) for b in _BLURS for s in _SCALES):
            for turn in turns:
                cos, sin = torch.cos(turn), torch.sin(turn)
                u, v = (x * cos + y * sin) * side / scale, (y * cos - x * sin) * side / scale
                distance = world.shape_distance(u, v, shape) * scale / side
                pictures.append(torch.sigmoid(-distance / (0.6 * blur)).flatten())
                kinds.append((shape, variant))
    return torch.stack(pictures).numpy(), kinds


def match(patches: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """How well each shape explains patches ``[T, P, P]``: scores ``[shapes]``, 1 for a perfect match.

    A score is a soft Dice coefficient, averaged over frames with ``weight`` ``[T]``. Every frame may be
    turned differently, but blur and scale are the same throughout.
    """
    templates, kinds = _templates()
    flat = patches.reshape(len(patches), -1)
    energy = (flat**2).sum(1)[:, None] + (templates**2).sum(1)[None]
    dice = 2 * (flat @ templates.T) / np.maximum(energy, 1e-6)  # [T, M]
    mean = weight / weight.sum()
    scores = np.zeros((len(voc.SHAPES), len(_BLURS) * len(_SCALES)))
    columns: dict[tuple[int, int], list[int]] = {}
    for column, kind in enumerate(kinds):
        columns.setdefault(kind, []).append(column)
    for kind, index in columns.items():
        scores[kind] = mean @ dice[:, index].max(1)
    return scores.max(1)


def turns(patches: np.ndarray, shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Angle ``[T]`` in radians, clockwise on the screen and unwrapped, and how clear it is ``[T]`` in [0, 1].

    The angle is the phase of the angular harmonic that has the shape's symmetry; a circle or ring has none
    and stays at zero.
    """
    fold = FOLDS[voc.SHAPES[shape]]
    if not fold:
        return np.zeros(len(patches)), np.zeros(len(patches))
    axis = patch_axis()
    y, x = np.meshgrid(axis, axis, indexing="ij")
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    wave = np.exp(1j * fold * angle) * radius * (radius < 1)
    moment = (patches * wave).sum((1, 2))
    total = np.maximum((patches * radius * (radius < 1)).sum((1, 2)), 1e-6)
    return np.unwrap(np.angle(moment)) / fold, np.abs(moment) / total
