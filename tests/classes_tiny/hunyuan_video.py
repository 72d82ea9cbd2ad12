"""Pipelines around HunyuanVideo's transformer."""

from __future__ import annotations

from collections.abc import Callable

import diffusers

from tests.classes_tiny.common import TEXT, Row, assemble, fixed, noise, once, picture, shown, text

WIDTH, POOLED, FRAMES, SIZE = 32, 8, 17, {"height": 128, "width": 144}
PROMPTS = {
    "prompt_embeds": text(WIDTH),
    "prompt_attention_mask": shown(TEXT),
    "pooled_prompt_embeds": noise(1, POOLED),
    "negative_prompt_embeds": text(WIDTH, seed=2),
    "negative_prompt_attention_mask": shown(TEXT - 3),
    "negative_pooled_prompt_embeds": noise(1, POOLED, seed=2),
    "true_cfg_scale": 3.0,
}
vae = once(
    lambda: diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
    )
)


def transformer(channels: int, **more):
    return fixed(
        lambda: diffusers.HunyuanVideoTransformer3DModel(
            in_channels=channels,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=2,
            patch_size_t=1,
            text_embed_dim=WIDTH,
            pooled_projection_dim=POOLED,
            rope_axes_dim=(4, 6, 6),
            **more,
        )
    )


def _row(kind: str, channels: int = 4, call: dict | None = None, **more) -> Row:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    parts = {"vae": vae(), "transformer": transformer(channels, **more), "scheduler": scheduler}
    return assemble(getattr(diffusers, kind), parts, **{**PROMPTS, **SIZE, "num_frames": FRAMES, **(call or {})})


IMAGE = {"image": picture(**SIZE)}
ROWS: dict[str, Callable[[], Row]] = {
    "HunyuanVideoPipeline": lambda: _row("HunyuanVideoPipeline", guidance_embeds=True),
    "HunyuanVideoImageToVideoPipeline": lambda: _row(
        "HunyuanVideoImageToVideoPipeline", 9, IMAGE, image_condition_type="latent_concat"
    ),
    "HunyuanVideoImageToVideoPipeline, token replaced": lambda: _row(
        "HunyuanVideoImageToVideoPipeline", 4, IMAGE, image_condition_type="token_replace", guidance_embeds=True
    ),
    "HunyuanSkyreelsImageToVideoPipeline": lambda: _row(
        "HunyuanSkyreelsImageToVideoPipeline", 8, IMAGE, guidance_embeds=True
    ),
}
