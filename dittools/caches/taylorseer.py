"""TaylorSeer: compute every few steps and extrapolate the steps between.

Source: Liu et al., "From Reusing to Forecasting", arXiv 2503.06923; the schedule is that of diffusers'
TaylorSeerCacheConfig. Published, every attention and feed-forward output is extrapolated, which for a 14B video
model holds hundreds of gigabytes; here only the transformer's output is, which holds two or three latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dittools.caches import masks
from dittools.caches.base import OutputCache
from dittools.caches.options import option, warmup_option
from dittools.caches.state import Model, Trajectory
from dittools.json_numbers import whole_steps


@dataclass(frozen=True)
class TaylorSeer(OutputCache):
    """Fixed schedule: warm-up, then one computed step in ``interval``; a Taylor series for the others.

    Published, its order is 1. Here it is 0 unless asked for: what is extrapolated is the output alone, and on the
    computed steps of the default interval that was further from dense where it was measured (docs/performance.md).
    """

    name: ClassVar[str] = "taylorseer"
    summary: ClassVar[str] = "every few steps computed, the others extrapolated (TaylorSeer)"

    warmup_steps: float | int = warmup_option(3)
    interval: int = option(5, "one computed step in so many; 1 computes all", min=1)
    start: int | str = option("auto", "a step to compute; auto: the second after the first ones", kind="count", min=0)
    schedule: str = option(
        "", "instead of an interval: slow, medium, fast, ultra, or a profile's JSON file", kind="file"
    )

    def never(self) -> bool:
        return self.interval == 1 and not self.schedule

    def check_files(self, steps: int | None = None) -> None:
        if self.schedule:
            masks.check(self.schedule, steps)

    def bind(self, model: Model) -> TaylorSeer:
        masks.check_model(self.schedule, model)
        return self

    def mask(self, run: Trajectory) -> list[bool]:
        if self.schedule:
            found = masks.named(self.schedule, run)
        else:
            first = whole_steps(self.warmup_steps, run.steps)
            found = masks.every(run.steps, self.interval, first + 1 if self.start == "auto" else self.start)
        return [keep or must for keep, must in zip(found, run.forced, strict=True)]
