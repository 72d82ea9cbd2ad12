"""MagCache: reuse while the known ratios of successive residuals say that little is missed.

Source: Ma et al., "MagCache", arXiv 2506.09045, and its published ratio tables (`profiles/`). The ratios hardly
depend on the prompt, so the schedule depends on nothing but them: all decisions are made before sampling.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from dittools.caches.base import ThresholdCache
from dittools.caches.options import AUTO, max_skips_option, option, profile_option, warmup_option
from dittools.caches.state import Model, Trajectory
from dittools.json_numbers import whole_steps
from dittools.profiles import caches as profiles


@dataclass(frozen=True)
class MagCache(ThresholdCache):
    """The magnitude that a kept residual would have by now, from measured ratios; its error is summed while reused."""

    name: ClassVar[str] = "magcache"
    summary: ClassVar[str] = "reuse while measured magnitudes say that little is missed (MagCache)"
    entry: ClassVar[Mapping[str, Any]] = {}  # of the model's profile; set by `bind`

    threshold: float | str = option(
        "auto", "how much error may add up; 0: none; auto: the profile's", kind="number", min=0
    )
    warmup_steps: float | int | str = warmup_option(AUTO)
    max_consecutive_skips: int | str = max_skips_option(AUTO)
    profile: str = profile_option()

    def check_files(self, steps: int | None = None) -> None:
        if self.profile:
            profiles.read_for("magcache", self.profile)

    def bind(self, model: Model) -> MagCache:
        known: Mapping[str, Any] = {"threshold": 0.06, "first": 0.2, "max_skips": 2, "ratios": [1.0]}
        if not self.never():
            known = profiles.entry("magcache", model, self.profile)
        keys = {"threshold": "threshold", "warmup_steps": "first", "max_consecutive_skips": "max_skips"}
        auto = {name: known[key] for name, key in keys.items() if getattr(self, name) == "auto"}
        bound = dataclasses.replace(self, **auto)
        object.__setattr__(bound, "entry", known)
        return bound

    def kept(self, steps: int, begins: Sequence[int]) -> list[bool]:
        """The first share of the steps of each expert, as published for Wan 2.2, and the last ones of the run."""
        kept = [step >= steps - whole_steps(self.cooldown_steps, steps - begins[0]) for step in range(steps)]
        starts = [begins[0], *(step for step in begins[1:] if step > begins[0])]
        for start, end in itertools.pairwise((*starts, steps)):
            for step in range(start, start + whole_steps(self.warmup_steps, end - start)):
                kept[step] = True
        return kept

    def mask(self, run: Trajectory) -> list[bool]:
        if self.never():
            return [True] * run.steps
        ratios = resample(self.entry["ratios"], run.steps)
        places = resample(range(len(self.entry["ratios"])), run.steps)
        never = self.entry.get("computed", ())
        forced = [must or place in never for must, place in zip(run.forced, places, strict=True)]
        return magnitudes(ratios, self.threshold, self.max_consecutive_skips, forced, self.entry.get("strict", False))

    def why_not(self, run: Trajectory) -> list[str]:
        if self.never():
            return []
        notes = profiles.differences(self.entry, run.steps, run.model)
        if run.model.experts > 1 and run.model.takes_over(run.timesteps) is None:
            notes.append("magcache: where the second expert takes over is not known, so its first steps may be reused")
        return notes


def magnitudes(
    ratios: Sequence[float], threshold: float, max_skips: int, forced: Sequence[bool], strict: bool = False
) -> list[bool]:
    """Steps to compute. Forced ones are; so is a step at which the summed error or the skips in a row are too many.

    Args:
        ratios: magnitude of each step's residual over that of the step before.
        threshold: most error of a reused step; with ``strict``, as published for Wan and Qwen-Image, it is less.
        max_skips: most steps reused in a row; 0 sets no limit.
    """
    mask, product, error, skips = [], 1.0, 0.0, 0
    for ratio, must in zip(ratios, forced, strict=True):
        product, skips = product * ratio, skips + 1
        error += abs(1 - product)
        little = error < threshold if strict else error <= threshold
        compute = must or not little or (max_skips > 0 and skips > max_skips)
        if compute:
            product, error, skips = 1.0, 0.0, 0
        mask.append(compute)
    return mask


def resample(ratios: Sequence[float], steps: int) -> list[float]:
    """The table for another number of steps: the nearest entry, ends on ends."""
    if len(ratios) == steps:
        return list(ratios)
    if steps == 1:
        return [ratios[-1]]
    return [ratios[round(step * (len(ratios) - 1) / (steps - 1))] for step in range(steps)]
