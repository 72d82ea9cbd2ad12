"""Wan 2.1 and 2.2. Configs of Wan-AI/Wan2.1-T2V-{1.3B,14B}-Diffusers and Wan2.2-TI2V-5B-Diffusers; tiny is ours."""

from __future__ import annotations

from typing import Any

import torch

from dittools.benchmarks.speed_only.record import Call, Record, Size


def _arguments(call: Call) -> dict[str, Any]:
    frames, height, width = call.tokens
    # The checkpoint that packs 16 pixels into a latent has one timestep a token.
    shape = (1,) if call.size.strides[1] == 8 else (1, frames * height * width)
    return {
        "hidden_states": call.noise(1, call.config.in_channels, *call.latents),
        "timestep": call.timestep.expand(shape),
        "encoder_hidden_states": call.text(call.config.text_dim),
    }


def _tables(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    config = model.config
    return {"rope": type(model.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len)}


def _config(layers: int, heads: int, ffn: int, head_dim: int = 128, **more: int) -> dict[str, int]:
    named = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head_dim, "ffn_dim": ffn}
    return named | more


WAN = Record(
    family="wan",
    default="1.3b",
    arguments=_arguments,
    tables=_tables,
    sizes={
        "tiny": Size(
            config=_config(2, 2, 128, 64, text_dim=32, freq_dim=32),
            strides=(4, 8), height=128, width=192, frames=33, text_tokens=16,
        ),
        "1.3b": Size(config=_config(30, 12, 8960), strides=(4, 8), height=480, width=832, frames=81),
        "14b": Size(config=_config(40, 40, 13824), strides=(4, 8), height=720, width=1280, frames=81),
        "5b": Size(
            config=_config(30, 24, 14336, in_channels=48, out_channels=48),
            strides=(4, 16), height=704, width=1280, frames=121,
        ),
    },
)  # fmt: skip
