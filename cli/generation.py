"""What the verbs that run a model have in common: open a model, encode, denoise densely or sparsely, decode."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools import methods
from dittools.cli.control import StepTimes
from dittools.cli.output import Output
from dittools.cli.progress import Stages
from dittools.cli.request import Request, Scene, complete
from dittools.config import Config
from dittools.pipelines import loading, saving, weights
from dittools.pipelines import stages as pipeline
from dittools.pipelines.errors import BadInput, RunFailed, first_line
from dittools.pipelines.tasks import whole


@dataclass(frozen=True)
class Chosen:
    """What a request comes to on this machine, before anything is loaded."""

    device: Any
    dtype: Any
    weights: weights.Weights
    folder: Path
    scene: Scene


@dataclass(frozen=True)
class Opened:
    """A loaded pipeline and what it generates by default.

    Args:
        limit: how many prompt tokens it reads; None where its call decides.
    """

    pipe: Any
    device: Any
    dtype: str
    weights: weights.Weights
    scene: Scene
    limit: int | None


def choose(request: Request, output: Output) -> Chosen:
    """Choose and fetch the weights, and complete the request by their defaults."""
    flags = request.flags
    for text in request.notes:
        output.note(text)
    device = loading.pick_device(flags.device)
    if request.task is not None:
        return _choose_whole(request, device, output)
    family, cuda = request.family, device.type == "cuda"
    classes = family.text_to
    ours = family.name == "wan"  # the embedded model is one
    note = output.note if ours else lambda text: None
    chosen = weights.choose(flags.weights, family.repo, cuda=cuda, classes=classes, note=note)
    if chosen.embedded and not ours:
        raise BadInput(f"no {family.name} weights at hand, and none were downloaded: give --weights a folder or a repo")
    folder = weights.fetch(chosen, classes=classes, note=output.note)
    dtype = loading.pick_dtype(flags.dtype, device)
    return Chosen(device, dtype, chosen, folder, complete(request, chosen, folder, device))


def _choose_whole(request: Request, device: Any, output: Output) -> Chosen:
    from dittools.cli.tasks.request import complete as complete_whole

    folder = weights.fetch(request.weights, classes=(request.task.asked.name,), note=output.note)
    dtype = loading.pick_dtype(request.flags.dtype, device)
    return Chosen(device, dtype, request.weights, folder, complete_whole(request, folder, device))


def open_model(
    request: Request,
    stages: Stages,
    output: Output,
    chosen: Chosen | None = None,
    check: Callable[[Chosen], None] = lambda chosen: None,
    enable: Callable[[Any], None] = lambda pipe: None,
) -> Opened:
    """Load what was chosen; without `chosen`, choose first.

    Args:
        check: may refuse the choice before it is loaded.
        enable: what else is done to the pipeline, before its blocks are compiled.
    """
    flags = request.flags
    chosen = chosen or choose(request, output)
    check(chosen)
    with stages("load"):
        stages.cuda = chosen.device.type == "cuda"
        stages.size = size_of(chosen.scene)
        pipe = loading.load(
            chosen.folder,
            device=chosen.device,
            dtype=chosen.dtype,
            offload=flags.offload,
            note=output.note,
            **_whole_ways(request, chosen, output),
        )
        enable(pipe)
        if flags.compile:
            loading.compile_blocks(pipe)
    limit = chosen.scene.max_text or pipeline.longest_text(pipe)
    dtype = dtype_name(chosen.dtype)
    return Opened(pipe, chosen.device, dtype, chosen.weights, chosen.scene, limit)


def _whole_ways(request: Request, chosen: Chosen, output: Output) -> dict[str, Any]:
    task = request.task
    if task is None:
        return {}
    prepare = functools.partial(task.prepare, guidance=chosen.scene.shot.guidance, note=output.note)
    return {"kind": task.one.kind, "quantize": task.held.quantize, "prepare": prepare}


def dtype_name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def size_of(scene: Scene) -> str:
    """For people: frames x height x width."""
    shot = scene.shot
    return f"{shot.frames or 1} x {shot.height} x {shot.width}" if shot.height and shot.width else ""


def prompt_notes(opened: Opened, scene: Scene) -> list[str]:
    """What the model will not read as it was meant."""
    notes = []
    if scene.task is not None and "prompt" not in scene.task.one.parameters:
        return notes
    if not scene.prompt.strip():
        notes.append("the prompt is empty: the model generates what it likes")
    if opened.weights.embedded:
        from dittools.pipelines import embedded

        unknown = embedded.unknown_words(scene.prompt)
        if unknown:
            named = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
            notes.append(f"the embedded model does not know: {named}")
    if opened.limit is None or not hasattr(opened.pipe, "tokenizer"):
        return notes
    for flag, text in (("--prompt", scene.prompt), ("--negative-prompt", scene.negative_prompt)):
        count = pipeline.prompt_tokens(opened.pipe, text)
        if count > opened.limit:
            notes.append(f"{flag} has {count} tokens and the model reads {opened.limit}: the end is cut off")
    return notes


def encode(opened: Opened, scene: Scene, stages: Stages) -> dict[str, Any]:
    """Text embeddings as the pipeline takes them; of a whole call, all its arguments."""
    if scene.task is not None:
        shot = scene.shot
        return scene.task.arguments(scene.prompt, scene.negative_prompt, shot, scene.fps, scene.max_text)
    with stages("text"):
        return pipeline.encode(opened.pipe, scene.prompt, scene.negative_prompt, scene.shot.guidance, opened.limit)


def warm_up(opened: Opened, embeds: dict, scene: Scene, config: Config | None) -> None:
    """One untimed step, with every step sparse and computed; None: the untouched pipeline."""
    import dittools

    def one_step() -> None:
        if scene.task is not None:
            whole.draw(opened.pipe, embeds, scene.shot.seed, whole.Listener(only_steps=1))
        else:
            pipeline.denoise(opened.pipe, embeds, scene.shot, only_steps=1)

    if config is None:
        one_step()
        return
    never = {"dense_steps": 0, "dense_last_steps": 0, "cache": "none", "cache_options": {}}
    if config.plans is not None:  # which know the steps that ran sparse: any method runs the same kernels
        needs_profile = methods.create(config.method, config.options).profile_use == "needed"
        never |= {"plans": None} | ({"method": "draft", "options": {}} if needs_profile else {})
    warm = dataclasses.replace(config, **never)
    with dittools.accelerate(opened.pipe, config=warm):
        one_step()


def denoise_dense(
    opened: Opened,
    embeds: dict,
    scene: Scene,
    stages: Stages,
    stage: str = "dense",
    times: StepTimes | None = None,
    only_steps: int | None = None,
) -> Any:
    """Latents of the untouched pipeline, or what a whole call drew.

    `times` hears of every step; `only_steps` ends the run after so many.
    """
    if scene.task is not None:
        around = "quality" if stage != "denoise" else None
        return _drawn(opened, embeds, scene, stages, times, _Turns(stage, around, only_steps))
    with stages(stage, only_steps or scene.shot.steps):
        tell = stages.progress.step if times is None else times.around(stages.progress.step)
        return pipeline.denoise(opened.pipe, embeds, scene.shot, tell, only_steps=only_steps)


def denoise_sparse(
    opened: Opened,
    embeds: dict,
    scene: Scene,
    config: Config,
    stages: Stages,
    times: StepTimes | None = None,
    watch: Callable[[Any], None] = lambda fast: None,
) -> tuple[Any, Any]:
    """Latents or what a whole call drew, and the `Acceleration`, its pipeline restored, to be asked what it did.

    `times` hears of every step; `watch` is given the `Acceleration` before the first.
    """
    import dittools

    shares: list[float] = []

    def heard(step: int, steps: int, share: float | None, seconds: float | None) -> None:
        if share is not None:
            shares.append(share)
            stages.progress.skipped(sum(shares) / len(shares))

    if scene.task is not None:
        try:
            on = dittools.accelerate(opened.pipe, config=config)
        except ValueError as error:
            raise BadInput(first_line(error)) from error
        with on as fast:
            watch(fast)
            fast.runtime.listeners.append(heard)
            return _drawn(opened, embeds, scene, stages, times, _Turns()), fast
    with stages("denoise", scene.shot.steps), dittools.accelerate(opened.pipe, config=config) as fast:
        watch(fast)
        fast.runtime.listeners.append(heard)
        tell = stages.progress.step if times is None else times.around(stages.progress.step)
        latents = pipeline.denoise(opened.pipe, embeds, scene.shot, tell)
    return latents, fast


@dataclass(frozen=True)
class _Turns:
    """Stages of a whole call: its steps, and what is before and behind them where that is one stage too."""

    steps: str = "denoise"
    around: str | None = None
    only_steps: int | None = None


def _drawn(
    opened: Opened, arguments: dict, scene: Scene, stages: Stages, times: StepTimes | None, turns: _Turns
) -> Any:
    """What a whole call gives. Raises BadInput for what its own checks refuse, RunFailed for frames that are none."""
    told: list[Callable[[int, int], None]] = []
    before, after = turns.around or "text", turns.around or "decode"

    with stages.in_turn(before) as turn:

        def on_loop(steps: int | None) -> None:
            if steps is None:
                turn(after)
                return
            turn(turns.steps, turns.only_steps or steps)
            if not told:
                tell = stages.progress.step
                told.append(tell if times is None else times.around(tell))

        def on_step(step: int, steps: int) -> None:
            told[0](step, steps)

        try:
            return whole.draw(
                opened.pipe, arguments, scene.shot.seed, whole.Listener(on_step, on_loop, turns.only_steps)
            )
        except FloatingPointError:
            raise RunFailed(_NOT_FINITE) from None
        except ValueError as error:
            if not told:  # the checks that a call begins with
                raise BadInput(f"{scene.task.one.name}: {first_line(error)}") from error
            raise


_NOT_FINITE = "the model's frames are not finite numbers: try --dtype fp32; nothing was written"


def decode(opened: Opened, latents: Any, scene: Scene, levels: bool = False) -> Any:
    """Frames `[T, H, W, 3]`, float32 in [0, 1], or uint8 levels. Raises RunFailed when they are no numbers.

    latents: or what a whole call drew.
    """
    if isinstance(latents, whole.Drawn):
        return saving.to_uint8(latents.frames) if levels else latents.frames
    try:
        return pipeline.decode(opened.pipe, latents, scene.shot, levels)
    except FloatingPointError:
        raise RunFailed(_NOT_FINITE) from None
