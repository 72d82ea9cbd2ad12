"""`dittools calibrate --cache`: dense runs, watched; what they say of the step caches, as a profile."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import files, provenance
from dittools.calibrate import cache as fitting
from dittools.cli import generation
from dittools.cli.output import Output
from dittools.cli.progress import Progress, Stages
from dittools.cli.prompts import builtin_prompts
from dittools.cli.request import Request
from dittools.json_numbers import whole_steps
from dittools.pipelines import saving
from dittools.pipelines import stages as pipeline
from dittools.pipelines.errors import BadInput
from dittools.profiles import caches as profiles

FEWEST_STEPS = 4
FIRST = 0.2
"""Share of the steps at the start that are always computed; the caches' own warm-up."""


@dataclass(frozen=True)
class Fit:
    """What to fit, and where to.

    Args:
        path: of the profile.
        computed: share of the steps to compute.
        reuse: what a cache carries over, "output" or "delta".
        prompts: None takes ``count`` builtin ones.
        command: the command line.
    """

    path: Path
    computed: float
    reuse: str
    prompts: Sequence[str] | None
    count: int
    command: list[str]


def calibrate(request: Request, fit: Fit, output: Output) -> dict[str, Any]:
    """Run densely, fit, write the profile and return it."""
    from dittools.pipelines.recording import recording

    check_steps(request.flags.steps)
    with Progress(output) as progress:
        stages = Stages(progress)
        opened = generation.open_model(
            request, stages, output, check=lambda chosen: check_steps(chosen.scene.shot.steps)
        )
        shot = opened.scene.shot
        measured = fitting.Measured(shot.steps, fit.reuse)
        prompts = fit.prompts or builtin_prompts(opened.weights.embedded, fit.count)
        for number, prompt in enumerate(prompts):
            progress.title = f"prompt {number + 1} of {len(prompts)}: "
            scene = opened.scene.of(prompt, seed=shot.seed + number)
            embeds = generation.encode(opened, scene, stages)
            with stages("calibrate", shot.steps), recording(opened.pipe, measured.note) as model:
                pipeline.denoise(opened.pipe, embeds, scene.shot, progress.step)
        scheduler = opened.pipe.scheduler
        timesteps = [float(t) for t in scheduler.timesteps.flatten().tolist()]
        if len(timesteps) != shot.steps:
            raise BadInput(
                f"{type(scheduler).__name__} calls the model {len(timesteps)} times in {shot.steps} steps: "
                f"calibrate with a scheduler of one call a step"
            )
        signals = model.time_changes("embedding", timesteps)
        if signals is None:
            output.note(f"the time embedding of {model.transformer} is not known: nothing was fitted for teacache")
        found = {
            "schema": profiles.SCHEMA,
            "kind": profiles.KIND,
            "model": opened.weights.name,
            "match": profiles.match_of(model),
            "steps": shot.steps,
            "scheduler": type(scheduler).__name__,
            "shift": getattr(scheduler.config, "flow_shift", getattr(scheduler.config, "shift", None)),
            "frames": shot.frames,
            "height": shot.height,
            "width": shot.width,
            "guidance": shot.guidance,
            "dtype": opened.dtype,
            "prompts": len(fit.prompts) if fit.prompts else fit.count,
            "seed": shot.seed,
            "reuse": fit.reuse,
            "computed": fit.computed,
            "dittools": provenance.dittools_version(),
            "versions": provenance.versions(),
            "command": fit.command,
            **fitting.profile(
                measured,
                signals,
                computed=fit.computed,
                first=whole_steps(FIRST, shot.steps),
                weights=_distances(scheduler, shot.steps),
            ),
        }
        with saving.told(fit.path):
            files.write_json(fit.path, found)
    return found


def check_steps(steps: int | None) -> None:
    """Raises BadInput for too few steps; None where they are not known yet."""
    if steps is not None and steps < FEWEST_STEPS:
        raise BadInput(f"--steps {steps} are too few to fit anything: use at least {FEWEST_STEPS}")


def _distances(scheduler: Any, steps: int) -> list[float] | None:
    """How far the sampler goes in each step, where its noise levels say so."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None or len(sigmas) < steps + 1:
        return None
    values = [float(sigma) for sigma in sigmas]
    return [abs(after - before) for before, after in itertools.pairwise(values[: steps + 1])]
