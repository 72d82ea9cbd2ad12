"""One generation from checked flags to files: load, encode, denoise (twice to compare), decode, save."""

from __future__ import annotations

import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from dittools import files
from dittools.cli import generation
from dittools.cli import record as records
from dittools.cli.control import REPEATED, Control, StepTimes, control, shared_steps
from dittools.cli.output import Output, to_json
from dittools.cli.progress import Progress, Stages
from dittools.cli.request import Request, Scene
from dittools.pipelines import saving
from dittools.pipelines.sound import Sound, write_wav

if TYPE_CHECKING:
    from dittools.cli.ranks import Together


def run(
    request: Request, command: list[str], output: Output, together: Together | None = None
) -> dict[str, Any] | None:
    """Draw the video, write it with its record beside it, and return the record.

    Args:
        command: the command line.
        together: this rank, where several draw the video; but for the first one they return None and write nothing.
    """
    begun = time.perf_counter()
    with Progress(output) as progress:
        stages = Stages(progress)
        opened = generation.open_model(request, stages, output, **_ways(together))
        return draw(opened, request, stages, begun, command, output, together)


def draw(
    opened: generation.Opened,
    request: Request,
    stages: Stages,
    begun: float,
    command: list[str],
    output: Output,
    together: Together | None = None,
) -> dict[str, Any] | None:
    """Draw one video with a model that is loaded; as `run`.

    Args:
        stages: which have timed the loading.
        begun: when the run did, by `time.perf_counter`.
    """
    scene = opened.scene
    embeds = generation.encode(opened, scene, stages)
    for note in generation.prompt_notes(opened, scene):
        output.note(note)

    leads = together is None or together.leads
    untouched = nullcontext if together is None else together.dense
    dense = None
    if request.flags.compare_dense:
        with untouched(opened.pipe):
            dense = _dense_run(opened, embeds, scene, request, stages, leads)
    if together is not None:
        together.meet()
    times = StepTimes(opened.device) if dense else None
    if request.family.why_not is not None:  # untouched, which was said
        latents = generation.denoise_dense(opened, embeds, scene, stages, "denoise", times)
        acceleration = records.dense_facts(None, scene.shot.steps)
    else:
        latents, fast = generation.denoise_sparse(opened, embeds, scene, request.config, stages, times)
        acceleration = fast.record() if together is None else together.gathered(fast.record())
    known = None
    if dense is not None:
        with untouched(opened.pipe):
            known = _control(opened, embeds, scene, stages, dense, times, acceleration)
    if together is not None:
        together.part()
    if not leads:
        return None
    with stages("decode"):
        frames = generation.decode(opened, latents, scene)
    sound = getattr(latents, "sound", None)
    if sound is not None and not saving.holds_sound(request.output.kind):
        output.note(f"the sound lies beside it in {request.output.sound.name}: {request.output.path.name} holds none")
    return _save(
        frames,
        stages,
        begun,
        sound,
        request=request,
        opened=opened,
        scene=scene,
        quality=None if dense is None else _quality(frames, dense, known, stages, opened.device),
        command=command,
        acceleration=acceleration | {"notes": [*acceleration["notes"], *output.notes]},
    )


def _ways(together: Together | None) -> dict[str, Any]:
    return {} if together is None else {"check": together.check, "enable": together.enable}


class _Dense(NamedTuple):
    """The dense run: its frames, None on ranks that do not decode, and seconds in all and of each step."""

    frames: Any
    seconds: float
    step_seconds: list[float]


def _dense_run(
    opened: Any, embeds: dict, scene: Scene, request: Request, stages: Stages, decoded: bool = True
) -> _Dense:
    """A run of the untouched pipeline, after one untimed step each of both ways."""
    with stages("warm-up"):
        generation.warm_up(opened, embeds, scene, None)
        if request.config.method != "dense":
            generation.warm_up(opened, embeds, scene, request.config)
    times = StepTimes(opened.device)
    latents = generation.denoise_dense(opened, embeds, scene, stages, times=times)
    with stages("quality"):
        frames = generation.decode(opened, latents, scene) if decoded else None
        return _Dense(frames, stages.seconds["dense"], times.seconds())


def _control(
    opened: Any, embeds: dict, scene: Scene, stages: Stages, dense: _Dense, times: StepTimes, facts: dict[str, Any]
) -> Control:
    """The steps that both runs do dense; where there are none, the first ones of the dense run, done again."""
    shared = shared_steps(facts, len(dense.step_seconds))
    if shared:
        return control(dense.step_seconds, times.seconds(), shared, "shared")
    count = min(REPEATED, len(dense.step_seconds))
    again = StepTimes(opened.device)
    generation.denoise_dense(opened, embeds, scene, stages, "control", again, count)
    return control(dense.step_seconds, again.seconds(), tuple(range(count)), "repeated")


def _quality(frames: Any, dense: _Dense, known: Control, stages: Stages, device: Any) -> dict[str, Any]:
    from dittools.quality import psnr, ssim

    with stages("quality"):
        where = device if device.type == "cuda" else None
        scores = psnr(frames, dense.frames, where), ssim(frames, dense.frames, where)
    return records.quality_facts(*scores, dense.seconds, stages.seconds["denoise"], known)


def _save(
    frames: Any, stages: Stages, begun: float, sound: Sound | None, request: Request, scene: Scene, **facts: Any
) -> dict[str, Any]:
    """Video, record and the sound that the video cannot hold appear together, or none does."""
    output = request.output
    inside = sound is not None and saving.holds_sound(output.kind)
    apart = [output.sound] if sound is not None and not inside else []
    with stages("save"), saving.together(output.path, output.record, *apart) as (part, record_part, *sound_part):
        started = time.perf_counter()
        saving.write(saving.to_uint8(frames), part, output.kind, scene.fps, *([sound] if inside else []))
        for place in sound_part:
            write_wav(sound, place)
        now = time.perf_counter()
        seconds = {**stages.seconds, "save": now - started}
        # what comparing cost is no part of what this run costs
        extra = sum(seconds.get(name, 0.0) for name in ("warm-up", "dense", "control", "quality"))
        seconds["total"] = now - begun - extra
        record = records.Generation(
            request=request,
            scene=scene,
            config=request.config,
            seconds=seconds,
            output=output.path,
            output_sha256=None if part.is_dir() else files.sha256(part),
            drawn=None if scene.task is None else dict(zip(records.SIZES, frames.shape[:3], strict=True)),
            **facts,
        ).record()
        if sound is not None:
            digests = [{"file": output.sound.name, "sha256": files.sha256(place)} for place in sound_part]
            record["task"]["sound"] = {**sound.facts(), "file": None, **(digests[0] if digests else {})}
        text = to_json(record).encode(errors="replace").decode()  # names of files need not be text
        record_part.write_text(text + "\n", encoding="utf-8")
    return record
