"""Pipelines around Stable Diffusion 3's transformer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import diffusers

from tests.classes_tiny.common import Row, assemble, fixed, left_half, noise, once, picture, text
from tests.pipelines_tiny import image_vae

WIDTH, POOLED, SIZE = 32, 16, {"height": 256, "width": 272}
PROMPTS = {
    "prompt_embeds": text(WIDTH),
    "negative_prompt_embeds": text(WIDTH, seed=2),
    "pooled_prompt_embeds": noise(1, POOLED),
    "negative_pooled_prompt_embeds": noise(1, POOLED, seed=2),
    "guidance_scale": 3.0,
}
SIZES = {
    "sample_size": 32,
    "patch_size": 2,
    "in_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "caption_projection_dim": 32,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": POOLED,
    "out_channels": 4,
    "pos_embed_max_size": 96,
}


# Perturbed guidance lets a picture row see itself alone in its layers.
PERTURBED = "rows of the perturbed branch see themselves alone"
vaes = {channels: once(functools.partial(image_vae, channels)) for channels in (4, 16)}


def _row(kind: str, parts: dict | None = None, pag: bool = False, channels: int = 4, **call) -> Row:
    model = fixed(
        lambda: diffusers.SD3Transformer2DModel(**{**SIZES, "in_channels": channels, "out_channels": channels})
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    parts = {"vae": vaes[channels](), "transformer": model, "scheduler": scheduler, **(parts or {})}
    if pag:
        parts["pag_applied_layers"] = ["blocks.1"]
    row = assemble(getattr(diffusers, kind), parts, **{**PROMPTS, **SIZE, **call})
    # In one of the two layers, guided and perturbed rows attend apart.
    return row._replace(dense={"attention mask": PERTURBED}, attentions=1.5) if pag else row


def _controlnet(extra: int = 0):
    sizes = {name: value for name, value in SIZES.items() if name != "out_channels"} | {"num_layers": 1}
    more = {"extra_conditioning_channels": extra, "force_zeros_for_pooled_projection": False}
    return {"controlnet": fixed(lambda: diffusers.SD3ControlNetModel(**sizes, **more))}


IMAGE = {"image": picture(**SIZE)}
ROWS: dict[str, Callable[[], Row]] = {
    "StableDiffusion3Pipeline": lambda: _row("StableDiffusion3Pipeline"),
    "StableDiffusion3Img2ImgPipeline": lambda: _row("StableDiffusion3Img2ImgPipeline", strength=0.7, **IMAGE),
    "StableDiffusion3InpaintPipeline": lambda: _row(
        "StableDiffusion3InpaintPipeline", channels=16, strength=0.7, mask_image=left_half(**SIZE), **IMAGE
    ),
    "StableDiffusion3ControlNetPipeline": lambda: _row(
        "StableDiffusion3ControlNetPipeline", _controlnet(), control_image=picture(**SIZE)
    ),
    "StableDiffusion3ControlNetInpaintingPipeline": lambda: _row(
        "StableDiffusion3ControlNetInpaintingPipeline",
        _controlnet(1),
        control_image=picture(**SIZE),
        control_mask=left_half(**SIZE),
    ),
    "StableDiffusion3PAGPipeline": lambda: _row("StableDiffusion3PAGPipeline", pag=True, pag_scale=1.0),
    "StableDiffusion3PAGImg2ImgPipeline": lambda: _row(
        "StableDiffusion3PAGImg2ImgPipeline", pag=True, pag_scale=1.0, strength=0.7, **IMAGE
    ),
}
