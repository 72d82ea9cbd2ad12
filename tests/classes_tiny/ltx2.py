"""Pipelines around LTX-2's transformer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import diffusers

from tests.classes_tiny.common import TEXT, Row, assemble, fixed, noise, once, picture, shown, text

WIDTH, LAYERS, FRAMES, SIZE = 16, 2, 25, {"height": 256, "width": 288}
PROMPTS = {
    "prompt_embeds": text(WIDTH * LAYERS),
    "prompt_attention_mask": shown(TEXT),
    "negative_prompt_embeds": text(WIDTH * LAYERS, seed=2),
    "negative_prompt_attention_mask": shown(TEXT - 3),
}


def _vae():
    vae = diffusers.AutoencoderKLLTX2Video(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        encoder_causal=True,
        decoder_causal=False,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    return vae


def _audio_vae():
    return diffusers.AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        mid_block_add_attention=False,
        sample_rate=16000,
        mel_hop_length=160,
        is_causal=True,
        mel_bins=8,
    )


def _connectors():
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    sizes = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    return LTX2TextConnectors(
        caption_channels=WIDTH,
        text_proj_in_factor=LAYERS,
        **{f"{side}_connector_{name}": value for side in ("video", "audio") for name, value in sizes.items()},
        connector_rope_base_seq_len=32,
        rope_theta=10000.0,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
    )


def _transformer(**more):
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        cross_attention_dim=32,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=WIDTH,
        rope_double_precision=False,
        rope_type="split",
        **more,
    )


vae, audio_vae, connectors, transformer = map(once, (_vae, _audio_vae, _connectors, _transformer))


def _row(kind: str, parts: dict | None = None, **call) -> Row:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = {
        "vae": vae(),
        "audio_vae": audio_vae(),
        "connectors": connectors(),
        "transformer": transformer(),
        "scheduler": scheduler,
        **(parts or {}),
    }
    return assemble(getattr(diffusers, kind), parts, **{**PROMPTS, **SIZE, "num_frames": FRAMES, **call})


def _held(frame: int):
    """A picture that a frame is held to; as numbers, since it is not compressed again then."""
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    return LTX2VideoCondition(frames=noise(1, 3, *SIZE.values()).clamp(-1, 1), index=frame, strength=1.0, crf=0)


def _referenced(kind: str, **call) -> Row:
    """A video beside the picture, which the picture attends to."""
    from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

    reference = LTX2ReferenceCondition(frames=noise(9, 3, 128, 160).clamp(-1, 1), strength=1.0)
    return _row(kind, reference_conditions=reference, **call)


def _hdr(kind: str) -> Row:
    from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition

    reference = LTX2HDRReferenceCondition(frames=noise(FRAMES, 3, *SIZE.values()).clamp(0, 1), strength=1.0)
    return _row(kind, reference_conditions=reference)


def _distilled(kind: str, parts: dict | None = None, **call) -> Row:
    """Pipelines that take a schedule and no negative prompt, and draw key frames at the end of the sequence."""
    marked = fixed(functools.partial(_transformer, use_keyframes_abs_pos_embedding=True))
    row = _row(kind, {"transformer": marked, **(parts or {})}, sigmas=[1.0, 0.6, 0.3], frame_rate=24.0, **call)
    unknown = {"num_inference_steps": None}
    return row._replace(call={name: value for name, value in row.call.items() if "negative" not in name} | unknown)


def _refined(kind: str) -> Row:
    from diffusers.pipelines.ltx2 import LTX2LatentUpsamplerModel

    sizes = {"in_channels": 4, "mid_channels": 32, "num_blocks_per_stage": 1, "dims": 3}
    parts = {
        "temporal_latent_upsampler": fixed(
            lambda: LTX2LatentUpsamplerModel(**sizes, spatial_upsample=False, temporal_upsample=True)
        ),
        "scheduler": diffusers.LTXEulerAncestralRFScheduler(eta=0.5),
    }
    height, width = (side // 32 for side in SIZE.values())
    drawn = {
        "latents": noise(1, 4, 4, height, width),
        "keyframes_latents": noise(1, 4, 2, height, width, seed=1),
        "keyframe_positions": [16, 24],
        "audio_latents": noise(1, 2, 26, 2, seed=2),
    }
    return _distilled(kind, parts, **drawn)._replace(runs=2)  # two tiles


ROWS: dict[str, Callable[[], Row]] = {
    "LTX2Pipeline": lambda: _row("LTX2Pipeline"),
    "LTX2ImageToVideoPipeline": lambda: _row("LTX2ImageToVideoPipeline", image=picture(**SIZE), image_crf=0),
    "LTX2ConditionPipeline": lambda: _row("LTX2ConditionPipeline", conditions=[_held(0)]),
    "LTX2ConditionPipeline, a frame in the middle": lambda: _row(
        "LTX2ConditionPipeline", conditions=[_held(0), _held(2)]
    ),
    "LTX2InContextPipeline": lambda: _referenced("LTX2InContextPipeline", reference_downscale_factor=2),
    "LTX2HDRPipeline": lambda: _hdr("LTX2HDRPipeline"),
    "LTX2DFRPipeline": lambda: _distilled("LTX2DFRPipeline", conditions=[_held(0)]),
    "LTX2DFRTemporalRefinePipeline": lambda: _refined("LTX2DFRTemporalRefinePipeline"),
}
