"""Pipelines around CogVideoX's transformer."""

from __future__ import annotations

from collections.abc import Callable

import diffusers

from tests.classes_tiny.common import Row, assemble, clip, fixed, once, picture, text
from tests.pipelines_tiny import cogvideox_vae

WIDTH, FRAMES, SIZE = 32, 17, {"height": 128, "width": 144}
PROMPTS = {"prompt_embeds": text(WIDTH, 226), "negative_prompt_embeds": text(WIDTH, 226, seed=2)}
vae = once(cogvideox_vae)


def transformer(channels: int):
    return fixed(
        lambda: diffusers.CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=channels,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=WIDTH,
            num_layers=2,
            sample_width=18,
            sample_height=16,
            sample_frames=FRAMES,
            max_text_seq_length=226,
            use_rotary_positional_embeddings=True,
        )
    )


def _row(kind: str, channels: int = 4, **call) -> Row:
    parts = {"vae": vae(), "transformer": transformer(channels), "scheduler": diffusers.CogVideoXDDIMScheduler()}
    return assemble(getattr(diffusers, kind), parts, **PROMPTS, **SIZE, **call)


ROWS: dict[str, Callable[[], Row]] = {
    "CogVideoXPipeline": lambda: _row("CogVideoXPipeline", num_frames=FRAMES),
    "CogVideoXImageToVideoPipeline": lambda: _row(
        "CogVideoXImageToVideoPipeline", 8, image=picture(**SIZE), num_frames=FRAMES
    ),
    "CogVideoXVideoToVideoPipeline": lambda: _row(
        "CogVideoXVideoToVideoPipeline", video=clip(FRAMES, **SIZE), strength=0.7
    ),
    "CogVideoXFunControlPipeline": lambda: _row("CogVideoXFunControlPipeline", 8, control_video=clip(FRAMES, **SIZE)),
}
