"""Pipelines around LTX-Video's transformer."""

from __future__ import annotations

from collections.abc import Callable

import diffusers

from tests.classes_tiny.common import TEXT, Row, assemble, fixed, once, picture, shown, text
from tests.pipelines_tiny import _t5, ltx_vae
from tests.tiny import tiny_tokenizer

WIDTH, FRAMES, SIZE = 32, 25, {"height": 256, "width": 288}
PROMPTS = {
    "prompt_embeds": text(WIDTH),
    "prompt_attention_mask": shown(TEXT),
    "negative_prompt_embeds": text(WIDTH, seed=2),
    "negative_prompt_attention_mask": shown(TEXT - 3),
}
vae = once(ltx_vae)


def transformer():
    return fixed(
        lambda: diffusers.LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=WIDTH,
        )
    )


def _row(kind: str, parts: dict | None = None, **call) -> Row:
    parts = {
        "vae": vae(),
        "transformer": transformer(),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(),
        **(parts or {}),
    }
    return assemble(getattr(diffusers, kind), parts, **{**PROMPTS, **SIZE, "num_frames": FRAMES, **call})


def _conditioned(*frames: int, **call) -> Row:
    from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition

    conditions = [LTXVideoCondition(image=picture(**SIZE, seed=frame), frame_index=frame) for frame in frames]
    return _row("LTXConditionPipeline", conditions=conditions, **call)


def _long(kind: str) -> Row:
    """It encodes prompts of segments itself."""
    parts = {"text_encoder": fixed(lambda: _t5(20, WIDTH)), "tokenizer": tiny_tokenizer()}
    given = {
        "prompt": "a red circle | a blue square",
        "temporal_tile_size": 24,
        "temporal_overlap": 8,
        "num_frames": 41,
    }
    row = _row(kind, parts, **given, max_sequence_length=16)
    given = {name: value for name, value in row.call.items() if name not in PROMPTS}
    return row._replace(call=given, runs=3, leaves_steps_out=True)  # three tiles


ROWS: dict[str, Callable[[], Row]] = {
    "LTXPipeline": lambda: _row("LTXPipeline"),
    "LTXImageToVideoPipeline": lambda: _row("LTXImageToVideoPipeline", image=picture(**SIZE)),
    "LTXConditionPipeline": lambda: _conditioned(0),
    "LTXConditionPipeline, a frame in the middle": lambda: _conditioned(0, 16),
    "LTXI2VLongMultiPromptPipeline": lambda: _long("LTXI2VLongMultiPromptPipeline"),
}
