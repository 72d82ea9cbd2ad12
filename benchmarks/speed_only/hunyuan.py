"""HunyuanVideo and 1.5. Configs of hunyuanvideo-community/HunyuanVideo (that of diffusers' own converter: the defaults
of the class) and of HunyuanVideo-1.5-Diffusers-{480p,720p}_t2v; tiny is ours.

``task_type`` of 1.5 is "t2v" here; its ``target_size`` is the default of the class, and no forward reads it.
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.benchmarks.speed_only.record import Call, Record, Size

GUIDANCE = 6.0  # the pipeline's default, given to the model in thousandths


def _arguments(call: Call) -> dict[str, Any]:
    return {
        "hidden_states": call.noise(1, call.config.in_channels, *call.latents),
        "timestep": call.timestep.expand(1).to(call.dtype),
        "encoder_hidden_states": call.text(call.config.text_embed_dim),
        "encoder_attention_mask": call.shown(),
        "pooled_projections": call.noise(1, call.config.pooled_projection_dim),
        "guidance": torch.full((1,), 1000 * GUIDANCE, device=call.device, dtype=call.dtype),
    }


HUNYUAN = Record(
    family="hunyuan-video",
    default="13b",
    arguments=_arguments,
    masked=True,
    sizes={
        "tiny": Size(
            config={
                "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 2,
                "attention_head_dim": 64, "rope_axes_dim": (16, 24, 24), "text_embed_dim": 32,
                "pooled_projection_dim": 16,
            },
            strides=(4, 8), height=128, width=192, frames=33, text_tokens=16,
        ),
        "13b": Size(
            config={"num_layers": 20, "num_single_layers": 40, "num_attention_heads": 24, "attention_head_dim": 128},
            strides=(4, 8), height=720, width=1280, frames=129, text_tokens=256,
        ),
    },
)  # fmt: skip

# Tokens of 1.5's three texts, as its pipeline pads them: Qwen2.5-VL's, ByT5's, and the image's, which a call without
# an image hides.
BYT5, IMAGE = 256, 729
TEXT = 1000


def _arguments_15(call: Call) -> dict[str, Any]:
    image, glyphs = call.config.image_embed_dim, call.config.text_embed_2_dim
    # The tiny size has 4 of each.
    byt5, seen = (BYT5, IMAGE) if call.size.text_tokens > BYT5 + IMAGE else (4, 4)
    text = call.size.text_tokens - byt5 - seen
    return {
        "hidden_states": call.noise(1, call.config.in_channels, *call.latents),
        "timestep": call.timestep.expand(1).to(call.dtype),
        "encoder_hidden_states": call.noise(1, text, call.config.text_embed_dim),
        "encoder_attention_mask": call.shown(text),
        "encoder_hidden_states_2": call.noise(1, byt5, glyphs),
        "encoder_attention_mask_2": call.shown(byt5),
        "image_embeds": torch.zeros(1, seen, image, device=call.device, dtype=call.dtype),
    }


_PATCH = {"strides": (4, 16), "patch": (1, 1, 1)}

HUNYUAN_15 = Record(
    family="hunyuan-video-1.5",
    default="8b",
    arguments=_arguments_15,
    masked=True,
    sizes={
        "tiny": Size(
            config={
                "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 2, "attention_head_dim": 64,
                "rope_axes_dim": (16, 24, 24), "in_channels": 9, "out_channels": 4, "text_embed_dim": 32,
                "text_embed_2_dim": 16, "image_embed_dim": 16, "task_type": "t2v",
            },
            height=128, width=192, frames=33, text_tokens=16, **_PATCH,
        ),
        "8b": Size(
            config={"num_layers": 54, "num_attention_heads": 16, "attention_head_dim": 128, "task_type": "t2v"},
            height=480, width=848, frames=121, text_tokens=TEXT + BYT5 + IMAGE, **_PATCH,
        ),
    },
)  # fmt: skip
