"""LTX-Video. Configs of Lightricks/LTX-Video (2b: the defaults of diffusers' class) and of the 13B versions 0.9.7 and
0.9.8 (those of diffusers' converter); tiny is ours. Text tokens are those of the text-to-video pipeline; the one that
starts from images pads to more.
"""

from __future__ import annotations

from typing import Any

from dittools.benchmarks.speed_only.record import Call, Record, Size

FRAME_RATE = 25  # the pipeline's default


def _arguments(call: Call) -> dict[str, Any]:
    frames, height, width = call.tokens
    time, side = call.size.strides
    return {
        "hidden_states": call.noise(1, frames * height * width, call.config.in_channels),
        "timestep": call.timestep.expand(1),
        "encoder_hidden_states": call.text(call.config.caption_channels),
        "encoder_attention_mask": call.shown(),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (time / FRAME_RATE, side, side),
    }


def _config(layers: int, heads: int, head_dim: int, **more: int) -> dict[str, int]:
    return {
        "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": head_dim,
        "cross_attention_dim": heads * head_dim, **more,
    }  # fmt: skip


_SHAPE = {"strides": (8, 32), "patch": (1, 1, 1)}
_ASKED = {"height": 704, "width": 1216, "frames": 121, "text_tokens": 128}

LTX = Record(
    family="ltx",
    default="13b",
    arguments=_arguments,
    sizes={
        "tiny": Size(
            config=_config(2, 2, 64, in_channels=4, out_channels=4, caption_channels=32),
            height=256, width=384, frames=65, text_tokens=16, **_SHAPE,
        ),
        "2b": Size(config=_config(28, 32, 64), **_ASKED, **_SHAPE),
        "13b": Size(config=_config(48, 32, 128), **_ASKED, **_SHAPE),
    },
)  # fmt: skip
