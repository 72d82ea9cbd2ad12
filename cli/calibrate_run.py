"""One calibration from checked flags to a profile: load, run every prompt densely, watched, and save what was seen.

`run` is for methods, whose calibrators listen, `fit_caches` for step caches.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dittools import files
from dittools.attention_profile import Made, Profile
from dittools.calibrate import CALIBRATORS, Calibrator, Size
from dittools.calibrate import cache as fitting
from dittools.cli import generation
from dittools.cli._flags import Run
from dittools.cli.output import Output
from dittools.cli.progress import Progress, Stages
from dittools.cli.prompts import builtin_prompts
from dittools.cli.request import check, grid_of
from dittools.config import Config
from dittools.json_numbers import whole_steps
from dittools.methods import create
from dittools.naming import unknown
from dittools.pipelines import saving
from dittools.pipelines import stages as pipeline
from dittools.pipelines.errors import BadInput
from dittools.profiles import caches as profiles
from dittools.provenance import device_facts, dittools_version, versions
from dittools.report.schedule import spoken
from dittools.stopwatch import Stopwatch
from dittools.tokens import TokenGrid

FEWEST_STEPS = 4
FIRST = 0.2
"""Share of the steps at the start that are always computed; the caches' own warm-up."""

Asked = tuple[tuple[str, ...] | None, int | None]
"""Prompts, or how many of the builtin ones; None: all."""


def check_methods(asked: list[str] | None) -> list[str]:
    """Names of calibrators. Raises BadInput for one that there is none of."""
    names = list(dict.fromkeys(asked or ["all"]))
    if "all" in names:
        return list(CALIBRATORS)
    for name in names:
        if name not in CALIBRATORS:
            raise BadInput(unknown("--method", name, [*CALIBRATORS, "all"]))
    return names


def run(
    flags: Run, methods: list[str], asked: Asked, place: Path, command: list[str], output: Output
) -> dict[str, Any]:
    """Calibrate for methods, write the profile, and return what it took."""
    begun = time.perf_counter()
    request, (prompts, count) = check(flags, None), asked
    with Progress(output) as progress:
        stages = Stages(progress)
        chosen = generation.choose(request, output)
        prompts = prompts or builtin_prompts(chosen.weights.embedded, count, calibration=True)
        shot = chosen.scene.shot
        grid = grid_of(request.family, chosen.folder, shot.frames, shot.height, shot.width)
        _fitting(methods, grid, Size.block_size)
        opened = generation.open_model(request, stages, output, chosen)
        scenes = [opened.scene.of(text, seed=flags.seed + number) for number, text in enumerate(prompts)]
        for scene in scenes:
            for note in generation.prompt_notes(opened, scene):
                output.note(note)
        listeners, model = _listen(opened, scenes, methods, stages, output)
        methods = list(listeners)
        with stages("save"):
            profile = _profile(opened, scenes, listeners, model, command, time.perf_counter() - begun)
            with saving.told(place):
                written = profile.save(place)
    seconds = {name: round(spent, 3) for name, (_, spent) in listeners.items()}
    shot = scenes[0].shot
    output.line(
        f"{place}: {', '.join(methods)} for {shot.frames} x {shot.height} x {shot.width} in {shot.steps} steps, "
        f"{sum(file.stat().st_size for file in written) / 1e3:.0f} kB"
    )
    dense = stages.seconds["listen"] - sum(seconds.values())
    measuring = ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())
    output.line(f"seconds {time.perf_counter() - begun:.1f} (dense runs {dense:.1f}, measuring {measuring})")
    return {
        "output": str(place),
        "files": {file.name: file.stat().st_size for file in written},
        "methods": methods,
        "prompts": list(prompts),
        "model": dataclasses.asdict(model),
        "grid": dataclasses.asdict(profile.grid),
        "steps": shot.steps,
        "seconds": {**{name: round(value, 3) for name, value in stages.seconds.items()}, "measuring": seconds},
    }


def _listen(
    opened: Any, scenes: list, methods: list[str], stages: Stages, output: Output
) -> tuple[dict[str, tuple], Any]:
    """Calibrators with the seconds they took, and the model they listened to."""
    import dittools

    made: dict[str, Calibrator] = {}
    spent = dict.fromkeys(methods, 0.0)
    watches: list[tuple[str, Stopwatch]] = []  # of this step
    rounds = max(CALIBRATORS[name].rounds for name in methods)
    with dittools.accelerate(opened.pipe, config=Config(method="dense")) as fast:
        model, round = fast.runtime.identity, 0
        size = Size(model.layers, model.heads, opened.scene.shot.steps)

        def observe(event: Any) -> None:
            if not made:
                able = _fitting(methods, event.grid, size.block_size, output.note)
                made.update((name, CALIBRATORS[name](size)) for name in able)
            for name, calibrator in made.items():
                if round < calibrator.rounds:
                    watch = Stopwatch(event.q.device)
                    calibrator.observe(event, round)
                    watch.stop()
                    watches.append((name, watch))

        begun, over, total = time.perf_counter(), itertools.count(1), rounds * len(scenes) * scenes[0].shot.steps

        def done(step: int, steps: int) -> None:
            stages.wait()  # the host is ahead of the device, perhaps by as much as the first step
            for name, watch in watches:
                spent[name] += watch.seconds
            watches.clear()
            count = next(over)
            left = (time.perf_counter() - begun) / count * (total - count)  # at the mean pace of all runs so far
            stages.progress.left(f"about {spoken(left)} left in all" if count < total else "")
            stages.progress.step(step, steps)

        fast.runtime.watchers.append(observe)
        for round in range(rounds):
            for number, scene in enumerate(scenes):
                stages.progress.title = f"round {round + 1} of {rounds}, prompt {number + 1} of {len(scenes)}: "
                embeds = generation.encode(opened, scene, stages)
                with stages("listen", scene.shot.steps):
                    pipeline.denoise(opened.pipe, embeds, scene.shot, done)
        stages.progress.title = ""
        stages.progress.left("")
    silent = [name for name in made or methods if name not in made or made[name].grid is None]
    if silent:
        raise BadInput(f"nothing was measured for {', '.join(silent)}: no self-attention call has the grid's tokens")
    return {name: (calibrator, spent[name]) for name, calibrator in made.items()}, model


def _fitting(
    names: list[str], grid: TokenGrid, block_size: int, note: Callable[[str], None] = lambda text: None
) -> list[str]:
    """Those that can run on this grid by a profile; of all methods the others are left out with a note.

    Raises BadInput where the others were asked for by name, or none is left.
    """
    unfit = {name: why for name in names if (why := create(name, {}).why_not(grid, block_size))}
    if unfit and (len(names) < len(CALIBRATORS) or len(unfit) == len(names)):
        raise BadInput(f"{next(iter(unfit.values()))}: use more frames or a larger size")
    for why in unfit.values():
        note(f"{why}: left out of the profile")
    return [name for name in names if name not in unfit]


def _profile(opened: Any, scenes: list, listeners: dict, model: Any, command: list[str], seconds: float) -> Profile:
    sections, arrays = {}, {}
    for name, (calibrator, _) in listeners.items():
        sections[name], tables = calibrator.tables()
        arrays.update((f"{name}.{table}", value) for table, value in tables.items())
        grid = calibrator.grid
    made = Made(
        weights=opened.weights.name,
        steps=scenes[0].shot.steps,
        device=device_facts(opened.device),
        versions=versions(),
        dittools=dittools_version(),
        command=tuple(command),
        prompts=tuple(scene.prompt for scene in scenes),
        seeds=tuple(scene.shot.seed for scene in scenes),
        guidance=scenes[0].shot.guidance,
        dtype=opened.dtype,
        seconds=round(seconds, 1),
    )
    return Profile(model, grid, made, sections, arrays)


def fit_caches(
    flags: Run, computed: float, reuse: str, asked: Asked, place: Path, command: list[str], output: Output
) -> dict[str, Any]:
    """Run densely, fit the step caches, write their profile and return it.

    Args:
        computed: share of the steps to compute.
        reuse: what a cache carries over, "output" or "delta".
        asked: prompts, or how many of the builtin ones, 1 by default.
        place: of the profile. command: the command line.
    """
    from dittools.pipelines.recording import recording

    request, (prompts, count) = check(flags, None), asked
    check_steps(flags.steps)
    with Progress(output) as progress:
        stages = Stages(progress)
        opened = generation.open_model(
            request, stages, output, check=lambda chosen: check_steps(chosen.scene.shot.steps)
        )
        shot = opened.scene.shot
        measured = fitting.Measured(shot.steps, reuse)
        prompts = prompts or builtin_prompts(opened.weights.embedded, count or 1)
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
                "calibrate with a scheduler of one call a step"
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
            "prompts": len(prompts),
            "seed": shot.seed,
            "reuse": reuse,
            "computed": computed,
            "dittools": dittools_version(),
            "versions": versions(),
            "command": command,
            **fitting.profile(
                measured,
                signals,
                computed=computed,
                first=whole_steps(FIRST, shot.steps),
                weights=_distances(scheduler, shot.steps),
            ),
        }
        with saving.told(place):
            files.write_json(place, found)
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
