"""What differs between pipelines that are run in stages: names of embeddings, and the way from latents to frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Staged:
    """How one pipeline class is run in stages.

    Args:
        embeddings: arguments that take what ``encode_prompt`` gives, in its order; None is not needed.
        decoded: (pipe, latents as the pipeline gives them, frames, height, width) -> what the decoder gives for them,
            images ``[T, C, H, W]`` before `processor` brings them to [0, 1].
        processor: attribute of the pipeline that ends it.
        finished: where the pipeline's output has its result.
    """

    embeddings: tuple[str | None, ...]
    decoded: Callable[[Any, Any, int, int, int], Any]
    processor: str = "video_processor"
    finished: str = "frames"


def _images(videos: Any) -> Any:
    """The first video of ``[B, C, T, H, W]`` as images ``[T, C, H, W]``."""
    return videos[0].transpose(0, 1)


def _wan(pipe: Any, latents: Any, frames: int, height: int, width: int) -> Any:
    import torch

    vae, config = pipe.vae, pipe.vae.config
    mean, std = (
        torch.tensor(values).view(1, config.z_dim, 1, 1, 1).to(latents)
        for values in (config.latents_mean, config.latents_std)
    )
    # dividing by 1 / std, not multiplying by std: the pipeline's own rounding
    return _images(vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0])


def _cogvideox(pipe: Any, latents: Any, frames: int, height: int, width: int) -> Any:
    wanted = (frames - 1) // pipe.vae_scale_factor_temporal + 1
    # CogVideoX 1.5 draws latents in pairs, and puts what is too many in front.
    return _images(pipe.decode_latents(latents[:, latents.shape[1] - wanted :]))


def _ltx(pipe: Any, latents: Any, frames: int, height: int, width: int) -> Any:
    vae = pipe.vae
    size = (
        (frames - 1) // pipe.vae_temporal_compression_ratio + 1,
        height // pipe.vae_spatial_compression_ratio,
        width // pipe.vae_spatial_compression_ratio,
    )
    patch = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    latents = pipe._unpack_latents(latents, *size, *patch)
    latents = pipe._denormalize_latents(latents, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    # Without noise at the end, which is what the pipeline does unless asked.
    time = latents.new_zeros(1) if vae.config.timestep_conditioning else None
    return _images(vae.decode(latents, time, return_dict=False)[0])


def _flux(pipe: Any, latents: Any, frames: int, height: int, width: int) -> Any:
    config = pipe.vae.config
    latents = pipe._unpack_latents(latents, height, width, pipe.vae_scale_factor)
    return pipe.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]


STAGED = {
    "WanPipeline": Staged(("prompt_embeds", "negative_prompt_embeds"), _wan),
    "CogVideoXPipeline": Staged(("prompt_embeds", "negative_prompt_embeds"), _cogvideox),
    "LTXPipeline": Staged(
        ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask"), _ltx
    ),
    "FluxPipeline": Staged(("prompt_embeds", "pooled_prompt_embeds", None), _flux, "image_processor", "images"),
}
