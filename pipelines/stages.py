"""A pipeline call in three stages that can be timed alone: text, denoising, latents to frames.

Together they give exactly what one call of the pipeline gives (tested), on diffusers' Wan pipelines.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class Shot:
    """What one run draws, apart from the prompt."""

    frames: int
    height: int
    width: int
    steps: int
    guidance: float
    seed: int


def encode(pipe: Any, prompt: str, negative_prompt: str, guidance: float, max_length: int) -> dict[str, torch.Tensor]:
    """Text embeddings as keyword arguments of the pipeline; negative ones only where guidance uses them."""
    import torch

    guided = guidance > 1.0  # diffusers' own rule
    with torch.no_grad():
        positive, negative = pipe.encode_prompt(
            prompt,
            negative_prompt=negative_prompt if guided else None,
            do_classifier_free_guidance=guided,
            max_sequence_length=max_length,
        )
    embeds = {"prompt_embeds": positive}
    if guided:
        embeds["negative_prompt_embeds"] = negative
    return embeds


def prompt_tokens(pipe: Any, prompt: str) -> int:
    """How many tokens the prompt has before any is cut off."""
    return len(pipe.tokenizer(prompt, add_special_tokens=True, verbose=False).input_ids)


def longest_text(pipe: Any) -> int:
    """How many prompt tokens one call of the pipeline reads by default."""
    return inspect.signature(type(pipe).__call__).parameters["max_sequence_length"].default


def denoise(
    pipe: Any,
    embeds: dict[str, torch.Tensor],
    shot: Shot,
    on_step: Callable[[int, int], None] | None = None,
    only_steps: int | None = None,
) -> torch.Tensor:
    """Latents `[1, C, F, H, W]`. The noise comes from the CPU, so a seed means the same on every device.

    on_step: told (step, steps) after each step, counted from 1.
    only_steps: stop after so many, the schedule as it is for all of them.
    """
    import torch

    def tell(_pipe: Any, step: int, _timestep: Any, kwargs: dict) -> dict:
        if on_step is not None:
            on_step(step + 1, shot.steps)
        if only_steps is not None and step + 1 >= only_steps:
            _pipe._interrupt = True  # diffusers' own way to end a run; the next call of the pipeline resets it
        return kwargs

    return pipe(
        **embeds,
        num_frames=shot.frames,
        height=shot.height,
        width=shot.width,
        num_inference_steps=shot.steps,
        guidance_scale=shot.guidance,
        generator=torch.Generator("cpu").manual_seed(shot.seed),
        output_type="latent",
        callback_on_step_end=tell,
    ).frames


def decode(pipe: Any, latents: torch.Tensor) -> np.ndarray:
    """Latents `[1, C, F, H, W]` -> frames `[T, H, W, 3]`, float32 in [0, 1], as the pipeline itself ends."""
    import torch

    vae, config = pipe.vae, pipe.vae.config
    with torch.no_grad():
        latents = latents.to(pipe._execution_device, dtype=vae.dtype)  # not vae.device: it may be offloaded
        mean, std = (
            torch.tensor(values).view(1, config.z_dim, 1, 1, 1).to(latents)
            for values in (config.latents_mean, config.latents_std)
        )
        # dividing by 1 / std, not multiplying by std: the pipeline's own rounding
        video = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]
        frames = pipe.video_processor.postprocess_video(video, output_type="np")[0]
    pipe.maybe_free_model_hooks()
    return frames
