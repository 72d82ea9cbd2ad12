"""One generation from checked flags to files: load, encode, denoise (twice to compare), decode, save."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from dittools.cli import record as records
from dittools.cli.asked import TEXT_TO_VIDEO
from dittools.cli.output import Output, to_json
from dittools.cli.progress import Progress
from dittools.cli.request import Request, Scene, complete
from dittools.cli.stages import Stages
from dittools.pipelines import loading, saving, weights
from dittools.pipelines import stages as pipeline
from dittools.pipelines.errors import RunFailed


def run(request: Request, command: list[str], output: Output) -> dict[str, Any]:
    """Draw the video, write it with its record beside it, and return the record."""
    begun = time.perf_counter()
    with Progress(output) as progress:
        stages = Stages(progress)
        with stages("load"):
            device = loading.pick_device(request.asked.device)
            stages.cuda = device.type == "cuda"
            dtype = loading.pick_dtype(request.asked.dtype, device)
            chosen, folder = _weights(request, stages.cuda, output)
            scene = complete(request, chosen, folder)
            stages.size = f"{scene.shot.frames} x {scene.shot.height} x {scene.shot.width}"
            pipe = loading.load(folder, device=device, dtype=dtype, offload=request.asked.offload)
            if request.asked.compile:
                loading.compile_blocks(pipe)
        with stages("text"):
            limit = scene.max_text or pipeline.longest_text(pipe)
            _prompt_notes(pipe, scene, chosen, limit, output)
            embeds = pipeline.encode(pipe, scene.prompt, scene.negative_prompt, scene.shot.guidance, limit)

        dense = _dense_run(pipe, embeds, scene, request, stages) if request.asked.compare_dense else None
        latents, acceleration = _sparse_run(pipe, embeds, scene, request, stages)
        with stages("decode"):
            frames = _decode(pipe, latents)
        quality = None
        if dense is not None:
            quality = _quality(frames, dense, stages)
        return _save(
            frames,
            request,
            scene,
            stages,
            begun,
            device=device,
            command=command,
            weights=chosen.name,
            run={**_size(scene), "dtype": str(dtype).removeprefix("torch."), **_placement(request)},
            acceleration=acceleration,
            quality=quality,
        )


def _weights(request: Request, cuda: bool, output: Output) -> tuple[weights.Weights, Path]:
    chosen = weights.choose(
        request.asked.weights, request.family.repo, cuda=cuda, classes=TEXT_TO_VIDEO, note=output.note
    )
    return chosen, weights.fetch(chosen, classes=TEXT_TO_VIDEO, note=output.note)


def _prompt_notes(pipe: Any, scene: Scene, chosen: weights.Weights, limit: int, output: Output) -> None:
    """What the model will not read as it was meant."""
    if not scene.prompt.strip():
        output.note("the prompt is empty: the model draws what it likes")
    if chosen.embedded:
        from dittools.pipelines import embedded

        unknown = embedded.unknown_words(scene.prompt)
        if unknown:
            named = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
            output.note(f"the embedded model does not know: {named}")
    for flag, text in (("--prompt", scene.prompt), ("--negative-prompt", scene.negative_prompt)):
        count = pipeline.prompt_tokens(pipe, text)
        if count > limit:
            output.note(f"{flag} has {count} tokens and the model reads {limit}: the end is cut off")


def _dense_run(pipe: Any, embeds: dict, scene: Scene, request: Request, stages: Stages) -> tuple[Any, float]:
    """Frames and denoise seconds of the untouched pipeline, after one untimed step each of both ways."""
    import dittools

    once = dataclasses.replace(scene.shot, steps=1)
    with stages("warm-up"):
        pipeline.denoise(pipe, embeds, once)
        if request.config.method != "dense":
            sparse_at_once = dataclasses.replace(request.config, dense_steps=0, dense_last_steps=0)
            with dittools.accelerate(pipe, config=sparse_at_once):
                pipeline.denoise(pipe, embeds, once)
    with stages("dense", scene.shot.steps):
        latents = pipeline.denoise(pipe, embeds, scene.shot, stages.progress.step)
    with stages("quality"):
        return _decode(pipe, latents), stages.seconds["dense"]


def _sparse_run(pipe: Any, embeds: dict, scene: Scene, request: Request, stages: Stages) -> tuple[Any, dict[str, Any]]:
    """Latents, and `Acceleration.record()`."""
    import dittools

    with stages("denoise", scene.shot.steps), dittools.accelerate(pipe, config=request.config) as fast:
        shares: list[float] = []

        def heard(step: int, steps: int, share: float | None, seconds: float | None) -> None:
            if share is not None:
                shares.append(share)
                stages.progress.skipped(sum(shares) / len(shares))

        fast.runtime.listeners.append(heard)
        latents = pipeline.denoise(pipe, embeds, scene.shot, stages.progress.step)
    return latents, fast.record()


def _decode(pipe: Any, latents: Any) -> Any:
    import numpy as np

    frames = pipeline.decode(pipe, latents)
    if not np.isfinite(frames).all():
        raise RunFailed("the model's frames are not finite numbers: try --dtype fp32; nothing was written")
    return frames


def _quality(frames: Any, dense: tuple[Any, float], stages: Stages) -> dict[str, Any]:
    from dittools.quality import psnr, ssim

    reference, dense_seconds = dense
    with stages("quality"):
        scores = psnr(frames, reference), ssim(frames, reference)
    return records.quality_facts(*scores, dense_seconds, stages.seconds["denoise"])


def _save(frames: Any, request: Request, scene: Scene, stages: Stages, begun: float, **facts: Any) -> dict[str, Any]:
    """Video and record appear together, or neither does."""
    output = request.output
    with stages("save"), saving.whole(output.record) as record_part, saving.whole(output.path) as part:
        started = time.perf_counter()
        saving.write(saving.to_uint8(frames), part, output.kind, scene.fps)
        now = time.perf_counter()
        seconds = {**stages.seconds, "save": now - started}
        # what comparing cost is no part of what this run costs
        extra = sum(seconds.get(name, 0.0) for name in ("warm-up", "dense", "quality"))
        seconds["total"] = now - begun - extra
        record = records.build(
            model=request.family.name,
            scene=scene,
            config=request.config,
            seconds=seconds,
            output=output.path,
            **facts,
        )
        record_part.write_text(to_json(record) + "\n", encoding="utf-8")
    return record


def _size(scene: Scene) -> dict[str, Any]:
    shot = scene.shot
    return {
        "frames": shot.frames,
        "height": shot.height,
        "width": shot.width,
        "fps": scene.fps,
        "guidance": shot.guidance,
    }


def _placement(request: Request) -> dict[str, Any]:
    return {"offload": request.asked.offload, "compile": request.asked.compile}
