"""TeaCache: reuse while a polynomial of the time embedding's change says that the output hardly moves.

Source: Liu et al., "Timestep Embedding Tells", arXiv 2411.19108, and its published coefficients (`profiles/`).
Where the published signal is of the time embedding alone (Wan, CogVideoX, HiDream), all decisions are made before
sampling. A polynomial says nothing outside the range it was fitted on, so its argument is clamped to that range and
its value to 0 or more.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dittools.caches.base import ThresholdCache, accumulate, relative_change
from dittools.caches.options import AUTO, max_skips_option, option, profile_option, threshold_option, warmup_option
from dittools.caches.state import BranchState, Model, Shapes, StepCall, Trajectory
from dittools.profiles import caches as profiles

TIME_SIGNALS = {"time_embedding": "embedding", "time_projection": "projection"}


@dataclass(frozen=True)
class TeaCache(ThresholdCache):
    """Signal: relative change of the time embedding, or of the first block's modulated input, through a polynomial."""

    name: ClassVar[str] = "teacache"
    summary: ClassVar[str] = "reuse while the time embedding says that little changes (TeaCache)"
    entry: ClassVar[Mapping[str, Any]] = {}  # of the model's profile; set by `bind`

    threshold: float | str = threshold_option(AUTO)
    warmup_steps: float | int | str = warmup_option(AUTO)
    max_consecutive_skips: int = max_skips_option(4)
    profile: str = profile_option()

    sample: int = option(8, "of so many tokens, one is compared where tokens are; 1: all", min=1)

    def check_files(self, steps: int | None = None) -> None:
        if self.profile:
            profiles.read_for("teacache", self.profile)

    def bind(self, model: Model) -> TeaCache:
        if self.never():
            return dataclasses.replace(self, warmup_steps=1 if self.warmup_steps == "auto" else self.warmup_steps)
        entry = profiles.entry("teacache", model, self.profile)
        if entry["signal"] == "block_input" and not model.block_input:
            raise ValueError(
                f"teacache cannot read what the first block of {model} is given: use a cache that needs no such signal "
                "(easycache, sea, taylorseer, first_block)"
            )
        bound = dataclasses.replace(
            self,
            threshold=entry["threshold"] if self.threshold == "auto" else self.threshold,
            warmup_steps=entry.get("first", 1) if self.warmup_steps == "auto" else self.warmup_steps,
        )
        object.__setattr__(bound, "entry", entry)
        object.__setattr__(bound, "signal_source", "nothing" if entry["signal"] in TIME_SIGNALS else entry["signal"])
        return bound

    def mask(self, run: Trajectory) -> list[bool] | None:
        if self.never():
            return [True] * run.steps
        if self.signal_source != "nothing":
            return None
        changes = run.model.time_changes(TIME_SIGNALS[self.entry["signal"]], run.timesteps)
        if changes is None or len(changes) != run.steps:
            # Nothing to decide by: compute, and say so in `why_not`.
            return [True] * run.steps
        costs = [polynomial(self.entry["coefficients"], change, self.entry["valid"]) for change in changes]
        return accumulate(costs, self.threshold, run.forced, self.max_consecutive_skips)

    def why_not(self, run: Trajectory) -> list[str]:
        if self.never():
            return []
        notes = profiles.differences(self.entry, run.steps, run.model)
        if self.signal_source == "nothing" and run.model.time_changes("embedding", run.timesteps) is None:
            notes.append(
                f"teacache: the time embedding of {run.model.transformer} is not known: every step is computed"
            )
        return notes

    def signal(self, state: BranchState, seen: torch.Tensor, call: StepCall) -> float | None:
        before, now = state.tensors.get("input"), seen[:, :: self.sample].detach().clone()
        state.tensors["input"] = now
        change = relative_change(now, before)
        return None if change is None else polynomial(self.entry["coefficients"], change, self.entry["valid"])

    def bytes_held(self, shapes: Shapes) -> int:
        signal = -(-shapes.tokens // self.sample) * shapes.width if self.signal_source == "block_input" else 0
        return super().bytes_held(shapes) + shapes.bytes * signal


def polynomial(coefficients: Sequence[float], change: float, valid: Sequence[float]) -> float:
    """Value at ``change`` clamped to the interval ``valid``, at least 0; NaN stays NaN.

    coefficients: highest power first.
    """
    if change != change:
        return change
    x = min(max(change, valid[0]), valid[1])
    value = 0.0
    for coefficient in coefficients:
        value = value * x + coefficient
    return max(value, 0.0)
