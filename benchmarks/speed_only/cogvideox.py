"""CogVideoX and 1.5. Configs of zai-org/CogVideoX-5b and zai-org/CogVideoX1.5-5B; tiny is ours, in the form of 1.5."""

from __future__ import annotations

from typing import Any

import torch

from dittools.benchmarks.speed_only.record import Call, Record, Size


def _arguments(call: Call) -> dict[str, Any]:
    frames, height, width = call.latents
    return {
        "hidden_states": call.noise(1, frames, call.config.in_channels, height, width),
        "timestep": call.timestep.expand(1),
        "encoder_hidden_states": call.text(call.config.text_embed_dim),
        "image_rotary_emb": _rope(call),
    }


def _rope(call: Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines fp32 ``[video tokens, head dim]``, as the pipelines of both versions make them."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    config, (frames, height, width) = call.config, call.tokens
    base = config.sample_height // config.patch_size, config.sample_width // config.patch_size
    how: dict[str, Any] = {"crops_coords": None, "grid_type": "slice", "max_size": base}
    if config.patch_size_t is None:
        how = {"crops_coords": get_resize_crop_region_for_grid((height, width), base[1], base[0])}
    return get_3d_rotary_pos_embed(
        embed_dim=config.attention_head_dim, grid_size=(height, width), temporal_size=frames, device=call.device, **how
    )


_OLD = {"use_rotary_positional_embeddings": True, "attention_head_dim": 64}
_NEW = _OLD | {
    "patch_size_t": 2, "patch_bias": False, "sample_height": 300, "sample_width": 300, "sample_frames": 81,
}  # fmt: skip
_5B = {"num_layers": 42, "num_attention_heads": 48}

COGVIDEOX = Record(
    family="cogvideox",
    default="1.5-5b",
    arguments=_arguments,
    sizes={
        "tiny": Size(
            config=_NEW
            | {
                "num_layers": 2, "num_attention_heads": 2, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16,
                "text_embed_dim": 32, "max_text_seq_length": 16,
            },
            strides=(4, 8), patch=(2, 2, 2), height=128, width=192, frames=65, text_tokens=16,
        ),
        "5b": Size(config=_OLD | _5B, strides=(4, 8), height=480, width=720, frames=49, text_tokens=226),
        "1.5-5b": Size(
            config=_NEW | _5B, strides=(4, 8), patch=(2, 2, 2), height=768, width=1360, frames=81, text_tokens=226,
        ),
    },
)  # fmt: skip
