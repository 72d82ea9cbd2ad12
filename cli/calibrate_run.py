"""One calibration from checked flags to a profile: load, run every prompt densely while calibrators listen, save."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dittools.attention_profile import Made, Profile
from dittools.calibrate import CALIBRATORS, Calibrator, Size
from dittools.cli import generation
from dittools.cli._flags import Run
from dittools.cli.output import Output
from dittools.cli.progress import Progress, Stages
from dittools.cli.prompts import builtin_prompts
from dittools.cli.request import check, grid_of
from dittools.config import Config
from dittools.methods import create
from dittools.naming import unknown
from dittools.pipelines import saving
from dittools.pipelines import stages as pipeline
from dittools.pipelines.errors import BadInput
from dittools.provenance import device_facts, dittools_version, versions
from dittools.report.schedule import spoken
from dittools.stopwatch import Stopwatch
from dittools.tokens import TokenGrid


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
    flags: Run,
    methods: list[str],
    asked: tuple[tuple[str, ...] | None, int | None],
    place: Path,
    command: list[str],
    output: Output,
) -> dict[str, Any]:
    """Calibrate, write the profile, and return what it took. ``asked``: prompts, or how many of the builtin ones."""
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
                files = profile.save(place)
    seconds = {name: round(spent, 3) for name, (_, spent) in listeners.items()}
    shot = scenes[0].shot
    output.line(
        f"{place}: {', '.join(methods)} for {shot.frames} x {shot.height} x {shot.width} in {shot.steps} steps, "
        f"{sum(file.stat().st_size for file in files) / 1e3:.0f} kB"
    )
    dense = stages.seconds["listen"] - sum(seconds.values())
    measuring = ", ".join(f"{name} {spent:.1f}" for name, spent in seconds.items())
    output.line(f"seconds {time.perf_counter() - begun:.1f} (dense runs {dense:.1f}, measuring {measuring})")
    return {
        "output": str(place),
        "files": {file.name: file.stat().st_size for file in files},
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
                fitting = _fitting(methods, event.grid, size.block_size, output.note)
                made.update((name, CALIBRATORS[name](size)) for name in fitting)
            for name, calibrator in made.items():
                if round < calibrator.rounds:
                    watch = Stopwatch(event.q.device)
                    calibrator.observe(event, round)
                    watch.stop()
                    watches.append((name, watch))

        estimate = Estimate(rounds * len(scenes) * scenes[0].shot.steps, stages.progress)

        def done(step: int, steps: int) -> None:
            stages.wait()  # the host is ahead of the device, perhaps by as much as the first step
            for name, watch in watches:
                spent[name] += watch.seconds
            watches.clear()
            estimate.step(step, steps)

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


class Estimate:
    """Tells of every step of all rounds and prompts, with how long the rest will take at the mean pace so far.

    Args:
        steps: of all runs together.
    """

    def __init__(self, steps: int, progress: Progress):
        self._steps, self._done, self._progress = steps, 0, progress
        self._begun = time.perf_counter()

    def step(self, step: int, steps: int) -> None:
        """One more step is done, this one of its run."""
        self._done += 1
        left = (time.perf_counter() - self._begun) / self._done * (self._steps - self._done)
        self._progress.left(f"about {spoken(left)} left in all" if self._done < self._steps else "")
        self._progress.step(step, steps)


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
