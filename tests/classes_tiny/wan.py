"""Pipelines around Wan's transformer, and around SkyReels-V2's."""

from __future__ import annotations

from collections.abc import Callable

import diffusers

from tests.classes_tiny.common import Row, assemble, clip, clip_processor, clip_vision, fixed, once, picture, text

EYES = 8  # width of the image encoder
WIDTH, FRAMES, SIZE = 32, 17, {"height": 128, "width": 144}
PROMPTS = {"prompt_embeds": text(WIDTH), "negative_prompt_embeds": text(WIDTH, seed=2), "guidance_scale": 3.0}
_SIZES = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "out_channels": 16,
    "text_dim": WIDTH,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}
vae = once(lambda: diffusers.AutoencoderKLWan(base_dim=4, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1))


def transformer(kind: type, channels: int = 16, **more):
    return fixed(lambda: kind(**_SIZES, in_channels=channels, **more))


def _wan(kind: str, channels: int = 16, experts: int = 1, **call) -> Row:
    cls, model = getattr(diffusers, kind), diffusers.WanTransformer3DModel
    parts = {"vae": vae(), "scheduler": diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction",
             use_flow_sigmas=True, flow_shift=3.0), "transformer": transformer(model, channels)}  # fmt: skip
    if experts == 2:
        parts |= {"transformer_2": transformer(model, channels), "boundary_ratio": 0.9}
    return assemble(cls, parts, **PROMPTS, **SIZE, **call)


def _skyreels(kind: str, channels: int = 16, **call) -> Row:
    more = {"image_dim": EYES} if channels == 36 else {}
    parts = {
        "vae": vae(),
        "scheduler": diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        "transformer": transformer(diffusers.SkyReelsV2Transformer3DModel, channels, **more),
        "image_encoder": clip_vision(EYES),
        "image_processor": clip_processor(),
    }
    return assemble(getattr(diffusers, kind), parts, **PROMPTS, **SIZE, **call)


def _forcing(kind: str, **call) -> Row:
    return _skyreels(kind, **{"prompt": None, "base_num_frames": FRAMES, "ar_step": 0, **call})


IMAGE = {"image": picture(**SIZE), "num_frames": FRAMES}
ROWS: dict[str, Callable[[], Row]] = {
    "WanPipeline": lambda: _wan("WanPipeline", num_frames=FRAMES),
    "WanPipeline of two experts": lambda: _wan("WanPipeline", experts=2, num_frames=FRAMES),
    "WanImageToVideoPipeline": lambda: _wan("WanImageToVideoPipeline", 36, **IMAGE),
    "WanVideoToVideoPipeline": lambda: _wan("WanVideoToVideoPipeline", video=clip(FRAMES, **SIZE), strength=0.6),
    "LucyEditPipeline": lambda: _wan("LucyEditPipeline", 32, video=clip(FRAMES, **SIZE), num_frames=FRAMES),
    "SkyReelsV2Pipeline": lambda: _skyreels("SkyReelsV2Pipeline", num_frames=FRAMES),
    "SkyReelsV2ImageToVideoPipeline": lambda: _skyreels("SkyReelsV2ImageToVideoPipeline", 36, **IMAGE),
    "SkyReelsV2DiffusionForcingPipeline": lambda: _forcing("SkyReelsV2DiffusionForcingPipeline", num_frames=FRAMES),
    "SkyReelsV2DiffusionForcingPipeline, frame by frame": lambda: _forcing(
        "SkyReelsV2DiffusionForcingPipeline", num_frames=FRAMES, ar_step=1, causal_block_size=1
    ),
    "SkyReelsV2DiffusionForcingImageToVideoPipeline": lambda: _forcing(
        "SkyReelsV2DiffusionForcingImageToVideoPipeline", **IMAGE
    ),
    "SkyReelsV2DiffusionForcingVideoToVideoPipeline": lambda: _forcing(
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline", video=clip(9, **SIZE), num_frames=FRAMES, overlap_history=5
    ),
}
