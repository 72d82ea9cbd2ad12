"""A profile of the random weights that a bench runs on: what a method costs that decides ahead, where none is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch

import dittools
from dittools.attention_profile import Made, Profile
from dittools.calibrate import CALIBRATORS, Size
from dittools.observer import AttentionEvent


@torch.no_grad()
def profile_of(pipe: Any, forward: Callable[[], Any], method: str) -> Profile:
    """What calibration finds in one call of a denoiser, which stands for every step of its schedule.

    Args:
        pipe: what `dittools.accelerate` takes. forward: makes one call of it.
        method: name of a calibrator.
    """
    steps = len(pipe.scheduler.timesteps)
    with dittools.accelerate(pipe, method="dense") as fast:
        model, turn = fast.runtime.identity, 0
        calibrator = CALIBRATORS[method](Size(model.layers, model.heads, steps))

        def observe(event: AttentionEvent) -> None:
            looked_at = dataclasses.replace(event.step_info, step=calibrator.steps[0])
            calibrator.observe(event._replace(step_info=looked_at), turn)

        fast.runtime.watchers.append(observe)
        while turn < calibrator.rounds:
            forward()
            turn += 1
    section, tables = calibrator.tables()
    arrays = {f"{method}.{table}": value for table, value in tables.items()}
    return Profile(model, calibrator.grid, Made("random weights", steps), {method: section}, arrays)
