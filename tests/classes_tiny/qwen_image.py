"""Pipelines around Qwen-Image's transformer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from unittest import mock

import diffusers

from tests.classes_tiny.common import TEXT, Row, assemble, fixed, left_half, once, picture, shown, text
from tests.pipelines_tiny import _t5

WIDTH, SIZE = 32, {"height": 128, "width": 144}
PROMPTS = {
    "prompt_embeds": text(WIDTH),
    "prompt_embeds_mask": shown(TEXT),
    "negative_prompt_embeds": text(WIDTH, seed=2),
    "negative_prompt_embeds_mask": shown(TEXT - 3),
    "true_cfg_scale": 3.0,
}
SIZES = {
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (8, 4, 4),
}
vae = once(
    lambda: diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
)


def _row(kind: str, parts: dict | None = None, call: dict | None = None, **more) -> Row:
    model = fixed(lambda: diffusers.QwenImageTransformer2DModel(**SIZES, **more))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = {"vae": vae(), "transformer": model, "scheduler": scheduler, **(parts or {})}
    return assemble(getattr(diffusers, kind), parts, **{**PROMPTS, **SIZE, **(call or {})})


def _edit(kind: str, parts: dict | None = None, part: int = 64, more: dict | None = None, **call) -> Row:
    """References are scaled to an area of a megapixel, here to a part of it."""
    row = _row(kind, parts, call, **(more or {}))
    module = sys.modules[type(row.pipe).__module__]
    usual = module.calculate_dimensions
    smaller = lambda area, ratio: usual(area // part, ratio)  # noqa: E731
    return row._replace(within=lambda: mock.patch.object(module, "calculate_dimensions", smaller))


def _controlled(kind: str, extra: int = 0, **call) -> Row:
    sizes = {**SIZES, "num_layers": 1}
    net = fixed(lambda: diffusers.QwenImageControlNetModel(**sizes, extra_condition_channels=extra))
    return _row(kind, {"controlnet": net}, {"control_image": picture(**SIZE, seed=3), **call})


def _layered(kind: str) -> Row:
    """It says its own size."""
    of_a_dtype = fixed(lambda: _t5(20, WIDTH))
    given = {"image": picture(**SIZE), "layers": 2, "prompt": ["a red circle"], "output_type": "pt"}
    row = _edit(kind, {"text_encoder": of_a_dtype}, 24, **given)
    return row._replace(call={name: value for name, value in row.call.items() if name not in SIZE})


IMAGE = {"image": picture(**SIZE), "strength": 0.7}
MASK = {"mask_image": left_half(**SIZE)}
ROWS: dict[str, Callable[[], Row]] = {
    "QwenImagePipeline": lambda: _row("QwenImagePipeline"),
    "QwenImageImg2ImgPipeline": lambda: _row("QwenImageImg2ImgPipeline", call=IMAGE),
    "QwenImageInpaintPipeline": lambda: _row("QwenImageInpaintPipeline", call=IMAGE | MASK),
    "QwenImageEditPipeline": lambda: _edit("QwenImageEditPipeline", image=picture(**SIZE)),
    "QwenImageEditPlusPipeline": lambda: _edit(
        "QwenImageEditPlusPipeline", image=[picture(**SIZE), picture(96, 160, 2)]
    ),
    "QwenImageEditInpaintPipeline": lambda: _edit("QwenImageEditInpaintPipeline", **IMAGE, **MASK),
    "QwenImageControlNetPipeline": lambda: _controlled("QwenImageControlNetPipeline"),
    "QwenImageControlNetInpaintPipeline": lambda: _controlled(
        "QwenImageControlNetInpaintPipeline", 4, control_mask=left_half(**SIZE)
    ),
    "QwenImageLayeredPipeline": lambda: _layered("QwenImageLayeredPipeline"),
}
