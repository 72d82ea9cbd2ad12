"""A pipeline call in three stages that can be timed alone: text, denoising, latents to frames.

Together they give exactly what one call of the pipeline gives (tested), on the pipelines of
`dittools.pipelines.staged`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dittools.pipelines.staged import STAGED, Staged

if TYPE_CHECKING:
    import numpy as np
    import torch

FRAMES_AT_ONCE = 16


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
    takes = inspect.signature(type(pipe).encode_prompt).parameters
    options = {"prompt_2": None} if "prompt_2" in takes else {}
    if "do_classifier_free_guidance" in takes:
        options |= {"negative_prompt": negative_prompt if guided else None, "do_classifier_free_guidance": guided}
    with torch.no_grad():
        found = pipe.encode_prompt(prompt, max_sequence_length=max_length, **options)
    names = _staged(pipe).embeddings
    return {name: value for name, value in zip(names, found, strict=True) if name and value is not None}


def prompt_tokens(pipe: Any, prompt: str) -> int:
    """How many tokens the prompt has before any is cut off."""
    # FLUX has two: the first reads a summary of the prompt, the second its words.
    tokenizer = getattr(pipe, "tokenizer_2", None) or pipe.tokenizer
    return len(tokenizer(prompt, add_special_tokens=True, verbose=False).input_ids)


def longest_text(pipe: Any) -> int | None:
    """How many prompt tokens one call of the pipeline reads by default; None where it does not say."""
    known = inspect.signature(type(pipe).__call__).parameters.get("max_sequence_length")
    return known.default if known is not None and isinstance(known.default, int) else None


def denoise(
    pipe: Any,
    embeds: dict[str, torch.Tensor],
    shot: Shot,
    on_step: Callable[[int, int], None] | None = None,
    only_steps: int | None = None,
) -> torch.Tensor:
    """Latents as the pipeline gives them. The noise comes from the CPU, so a seed means the same on every device.

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

    frames = {"num_frames": shot.frames} if "num_frames" in inspect.signature(type(pipe).__call__).parameters else {}
    output = pipe(
        **embeds,
        **frames,
        height=shot.height,
        width=shot.width,
        num_inference_steps=shot.steps,
        guidance_scale=shot.guidance,
        generator=torch.Generator("cpu").manual_seed(shot.seed),
        output_type="latent",
        callback_on_step_end=tell,
    )
    return getattr(output, _staged(pipe).finished)


def decode(pipe: Any, latents: torch.Tensor, shot: Shot, levels: bool = False) -> np.ndarray:
    """Latents as `denoise` gives them -> frames `[T, H, W, 3]` on the CPU, as the pipeline itself ends.

    Args:
        levels: as uint8, each rounded to the nearest of 256 levels, in place of float32 in [0, 1].

    Raises:
        FloatingPointError: when a frame holds anything but finite numbers.
    """
    import torch

    staged = _staged(pipe)
    finite = True
    with torch.no_grad():
        latents = latents.to(pipe._execution_device, dtype=pipe.vae.dtype)  # not vae.device: it may be offloaded
        images = staged.decoded(pipe, latents, shot.frames, shot.height, shot.width)
        processor = getattr(pipe, staged.processor)
        count, _, height, width = images.shape
        frames = torch.empty(count, height, width, 3, dtype=torch.uint8 if levels else torch.float32)
        # A few at a time where they are: the decoder's memory is not topped, and only what is kept is moved.
        for part, place in zip(images.split(FRAMES_AT_ONCE), frames.split(FRAMES_AT_ONCE), strict=True):
            pixels = processor.postprocess(part, output_type="pt").permute(0, 2, 3, 1).float()
            finite = finite and bool(pixels.isfinite().all())
            place.copy_((pixels.clamp(0, 1) * 255).round().byte() if levels else pixels)
    pipe.maybe_free_model_hooks()  # whatever the frames are: who called may go on with others
    if not finite:
        raise FloatingPointError("frames are not finite numbers")
    return frames.numpy()


def _staged(pipe: Any) -> Staged:
    return next(STAGED[kind.__name__] for kind in type(pipe).__mro__ if kind.__name__ in STAGED)
