"""Pipelines around FLUX.1's transformer."""

from __future__ import annotations

from collections.abc import Callable

import diffusers

from tests.classes_tiny.common import Row, assemble, fixed, left_half, noise, once, picture, text
from tests.pipelines_tiny import _clip, _t5, image_vae
from tests.tiny import tiny_tokenizer

WIDTH, POOLED, SIZE = 32, 16, {"height": 256, "width": 272}
PROMPTS = {"prompt_embeds": text(WIDTH), "pooled_prompt_embeds": noise(1, POOLED)}
NEGATIVE = {
    "negative_prompt_embeds": text(WIDTH, seed=2),
    "negative_pooled_prompt_embeds": noise(1, POOLED, seed=2),
    "true_cfg_scale": 3.0,
}
SIZES = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": POOLED,
    "axes_dims_rope": (4, 4, 8),
    "guidance_embeds": True,
}
vae = once(image_vae)


def transformer(channels: int = 16):
    return fixed(lambda: diffusers.FluxTransformer2DModel(**SIZES, in_channels=channels, out_channels=16))


def _row(kind: str, channels: int = 16, parts: dict | None = None, **call) -> Row:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = {"vae": vae(), "transformer": transformer(channels), "scheduler": scheduler, **(parts or {})}
    return assemble(getattr(diffusers, kind), parts, **{**PROMPTS, **SIZE, **call})


def _controlled(kind: str, **call) -> Row:
    net = fixed(lambda: diffusers.FluxControlNetModel(**SIZES, in_channels=16))
    return _row(kind, parts={"controlnet": net}, control_image=picture(**SIZE, seed=3), **call)


def _kontext(kind: str, **call) -> Row:
    """References are not scaled to the sizes that Kontext was trained on."""
    return _row(kind, **{"_auto_resize": False, "max_area": SIZE["height"] * SIZE["width"], **call})


def _cloze(kind: str, **call) -> Row:
    """It encodes its prompts itself, and says the size by its examples."""
    examples = [[picture(128, 128, seed) for seed in (1, 2)], [picture(128, 128, 3), None]]
    parts = {
        "resolution": 128,
        "text_encoder": fixed(lambda: _clip(20, POOLED)),
        "text_encoder_2": fixed(lambda: _t5(20, WIDTH)),
        "tokenizer": tiny_tokenizer(),
        "tokenizer_2": tiny_tokenizer(),
    }
    parts["tokenizer"].model_max_length = 77
    pipe = _row(kind, 16 * 2 + 256, parts).pipe
    given = {"task_prompt": "a red circle", "content_prompt": "a blue square", "image": examples, **call}
    return Row(pipe, given | {"max_sequence_length": 16})


IMAGE = {"image": picture(**SIZE), "strength": 0.7}
MASK = {"mask_image": left_half(**SIZE)}
CONTROL = {"control_image": picture(**SIZE, seed=3)}
ROWS: dict[str, Callable[[], Row]] = {
    "FluxPipeline": lambda: _row("FluxPipeline", **NEGATIVE),
    "FluxImg2ImgPipeline": lambda: _row("FluxImg2ImgPipeline", **IMAGE),
    "FluxInpaintPipeline": lambda: _row("FluxInpaintPipeline", **IMAGE, **MASK),
    "FluxFillPipeline": lambda: _row("FluxFillPipeline", 16 * 2 + 256, **IMAGE, **MASK),
    "FluxControlPipeline": lambda: _row("FluxControlPipeline", 32, **CONTROL),
    "FluxControlImg2ImgPipeline": lambda: _row("FluxControlImg2ImgPipeline", 32, **IMAGE, **CONTROL),
    "FluxControlInpaintPipeline": lambda: _row("FluxControlInpaintPipeline", 32, **IMAGE, **MASK, **CONTROL),
    "FluxControlNetPipeline": lambda: _controlled("FluxControlNetPipeline"),
    "FluxControlNetImg2ImgPipeline": lambda: _controlled("FluxControlNetImg2ImgPipeline", **IMAGE),
    "FluxControlNetInpaintPipeline": lambda: _controlled("FluxControlNetInpaintPipeline", **IMAGE, **MASK),
    "FluxKontextPipeline": lambda: _kontext("FluxKontextPipeline", image=picture(192, 208), **NEGATIVE),
    "FluxKontextPipeline without a reference": lambda: _kontext("FluxKontextPipeline"),
    "FluxKontextInpaintPipeline": lambda: _kontext("FluxKontextInpaintPipeline", **IMAGE, **MASK),
    "VisualClozeGenerationPipeline": lambda: _cloze("VisualClozeGenerationPipeline"),
    "VisualClozePipeline": lambda: _cloze("VisualClozePipeline", upsampling_height=256, upsampling_width=256)._replace(
        runs=2
    ),
}
