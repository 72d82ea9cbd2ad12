"""FLUX.1 and Qwen-Image. Configs of black-forest-labs/FLUX.1-dev (the defaults of diffusers' class, with guidance
embedded) and Qwen/Qwen-Image (the defaults of its class); tiny is ours.
"""

from __future__ import annotations

from typing import Any

import torch

from dittools.benchmarks.speed_only.record import Call, Record, Size

GUIDANCE = 3.5  # FLUX.1-dev's pipeline's default


def image_ids(height: int, width: int, columns: int = 3, device: torch.device | None = None) -> torch.Tensor:
    """(image, row, column, ..) of every token of one image: fp32 ``[height * width, columns]``."""
    ids = torch.zeros(height * width, columns, device=device)
    ids[:, 1] = torch.arange(height, device=device).repeat_interleave(width)
    ids[:, 2] = torch.arange(width, device=device).repeat(height)
    return ids


def _flux_arguments(call: Call) -> dict[str, Any]:
    _, height, width = call.tokens
    return {
        "hidden_states": call.noise(1, height * width, call.config.in_channels),
        "timestep": call.timestep.expand(1).to(call.dtype) / 1000,
        "encoder_hidden_states": call.text(call.config.joint_attention_dim),
        "pooled_projections": call.noise(1, call.config.pooled_projection_dim),
        "img_ids": image_ids(height, width, device=call.device).to(call.dtype),
        "txt_ids": torch.zeros(call.size.text_tokens, 3, device=call.device, dtype=call.dtype),
        "guidance": torch.full((1,), GUIDANCE, device=call.device),
    }


FLUX = Record(
    family="flux",
    default="dev",
    arguments=_flux_arguments,
    method="draft",
    sizes={
        "tiny": Size(
            config={
                "num_layers": 1, "num_single_layers": 1, "num_attention_heads": 2, "attention_head_dim": 64,
                "in_channels": 16, "joint_attention_dim": 32, "pooled_projection_dim": 16, "guidance_embeds": True,
                "axes_dims_rope": (16, 24, 24),
            },
            strides=(1, 8), height=512, width=512, text_tokens=16,
        ),
        "dev": Size(
            config={
                "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
                "guidance_embeds": True,
            },
            strides=(1, 8), height=4096, width=4096,
        ),
    },
)  # fmt: skip


def _qwen_arguments(call: Call) -> dict[str, Any]:
    frames, height, width = call.tokens
    return {
        "hidden_states": call.noise(1, frames * height * width, call.config.in_channels),
        "timestep": call.timestep.expand(1).to(call.dtype) / 1000,
        # Without a mask: the pipeline drops one that hides nothing.
        "encoder_hidden_states": call.text(call.config.joint_attention_dim),
        "img_shapes": [[(frames, height, width)]],
    }


def _qwen_tables(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    axes = list(model.config.axes_dims_rope)
    return {"pos_embed": type(model.pos_embed)(theta=model.pos_embed.theta, axes_dim=axes, scale_rope=True)}


QWEN_IMAGE = Record(
    family="qwen-image",
    default="20b",
    arguments=_qwen_arguments,
    tables=_qwen_tables,
    method="draft",
    sizes={
        "tiny": Size(
            config={
                "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64, "in_channels": 16,
                "out_channels": 4, "joint_attention_dim": 32, "axes_dims_rope": (16, 24, 24),
            },
            strides=(1, 8), height=512, width=512, text_tokens=16,
        ),
        "20b": Size(
            config={"num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128},
            strides=(1, 8), height=2048, width=2048,
        ),
    },
)  # fmt: skip
