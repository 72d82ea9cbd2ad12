"""A profile of the random weights that a bench runs on: what a method costs that decides ahead, where none is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

import dittools
from dittools.calibrate import CALIBRATORS, Size
from dittools.profile import Made, Profile
from dittools.runtime import Heard


@torch.no_grad()
def profile_of(pipe: Any, forward: Callable[[], Any], methods: Sequence[str]) -> Profile:
    """What calibration finds in one call of a denoiser, which stands for every step of its schedule.

    Args:
        pipe: what `dittools.accelerate` takes. forward: makes one call of it.
        methods: names of calibrators.
    """
    steps = len(pipe.scheduler.timesteps)
    with dittools.accelerate(pipe, method="dense") as fast:
        model, turns = fast.runtime.identity, 0
        calibrators = {name: CALIBRATORS[name](Size(model.layers, model.heads, steps)) for name in methods}

        def hear(heard: Heard) -> None:
            for calibrator in calibrators.values():
                if turns < calibrator.rounds:
                    looked_at = dataclasses.replace(heard.tick, step=calibrator.steps[0])
                    calibrator.hear(heard._replace(tick=looked_at), turns)

        fast.runtime.watchers.append(hear)
        while turns < max(calibrator.rounds for calibrator in calibrators.values()):
            forward()
            turns += 1
    sections, arrays = {}, {}
    for name, calibrator in calibrators.items():
        sections[name], tables = calibrator.tables()
        arrays |= {f"{name}.{table}": value for table, value in tables.items()}
    return Profile(model, calibrator.grid, Made("random weights", steps), sections, arrays)
