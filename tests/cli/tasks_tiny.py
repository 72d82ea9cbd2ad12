"""Tiny pipeline folders for tasks beside text to video: random weights, with text encoders, so that a prompt is all."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from PIL import Image
from safetensors.torch import save_file

from tests import pipelines_tiny
from tests.classes_tiny import ltx2, wan
from tests.classes_tiny.common import fixed, left_half, noise
from tests.tiny import tiny_pipeline, tiny_tokenizer

SIZE = ("--height", "48", "--width", "64", "--steps", "2", "--prompt", "a red circle")
VIDEO = ("--frames", "5", *SIZE)


@functools.cache
def _wan() -> Any:
    return tiny_pipeline()


def _of_wan(kind: str, model: str = "WanTransformer3DModel", channels: int = 16, **more: Any) -> Any:
    base = _wan()
    parts = {name: getattr(base, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")}
    transformer = wan.transformer(getattr(diffusers, model), channels, **more)
    return getattr(diffusers, kind)(**parts, transformer=transformer)


def _like(part: Any, **changed: Any) -> Any:
    """A model of the same sizes, but for these, with random weights of its own."""
    known = {name: value for name, value in part.config.items() if not name.startswith("_")}
    return fixed(lambda: type(part).from_config({**known, **changed}))


def _flux(kind: str, channels: int = 16) -> Any:
    base = pipelines_tiny.pipeline("flux")
    parts = {name: part for name, part in base.components.items() if part is not None}
    parts["transformer"] = _like(base.transformer, in_channels=channels, out_channels=16)
    return getattr(diffusers, kind)(**_known(kind, parts))


def _cogvideox(kind: str, channels: int = 4) -> Any:
    base = pipelines_tiny.pipeline("cogvideox")
    parts = {**base.components, "transformer": _like(base.transformer, in_channels=channels)}
    return getattr(diffusers, kind)(**_known(kind, parts))


def _known(kind: str, parts: dict[str, Any]) -> dict[str, Any]:
    wanted = inspect.signature(getattr(diffusers, kind).__init__).parameters
    return {name: part for name, part in parts.items() if name in wanted}


def _ltx_conditions() -> Any:
    """LTX-Video as from 0.9.5 on, whose schedule does not shift with the size."""
    pipe = pipelines_tiny.pipeline("ltx")
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    return pipe


def _ltx2() -> Any:
    """With a vocoder and a text encoder, so that it makes sound of a prompt."""
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
    from transformers import LlamaConfig, LlamaModel

    base = ltx2.ROWS["LTX2Pipeline"]().pipe
    sizes = {"hidden_size": ltx2.WIDTH, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    small = {"block_out_channels": (8,), "decoder_block_out_channels": (8,), "layers_per_block": (1,)}
    parts = {
        "vae": lambda: diffusers.AutoencoderKLLTX2Video(
            **small,
            latent_channels=4,
            decoder_layers_per_block=(1, 1),
            spatio_temporal_scaling=(True,),
            decoder_spatio_temporal_scaling=(True,),
            decoder_inject_noise=(False, False),
            downsample_type=("spatial",),
            upsample_residual=(False,),
            upsample_factor=(1,),
            patch_size=1,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        ),
        "text_encoder": lambda: LlamaModel(LlamaConfig(**sizes, vocab_size=32, num_key_value_heads=2)),
        "vocoder": lambda: LTX2Vocoder(
            in_channels=16,
            hidden_channels=16,
            upsample_kernel_sizes=[4, 4],
            upsample_factors=[2, 2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1, 3, 5]],
            output_sampling_rate=16000,
        ),
    }
    there = {name: part for name, part in base.components.items() if part is not None}
    return type(base)(**there | {name: fixed(make) for name, make in parts.items()}, tokenizer=tiny_tokenizer())


FOLDERS: dict[str, Callable[[], Any]] = {
    "wan": _wan,
    "wan-i2v": lambda: _of_wan("WanImageToVideoPipeline", channels=36),
    "wan-vace": lambda: _of_wan("WanVACEPipeline", "WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=96),
    "flux-fill": lambda: _flux("FluxFillPipeline", 16 * 2 + 256),
    "flux-control": lambda: _flux("FluxControlPipeline", 32),
    "flux-kontext": lambda: _flux("FluxKontextPipeline"),
    "cogvideox-control": lambda: _cogvideox("CogVideoXFunControlPipeline", 8),
    "ltx-conditions": _ltx_conditions,
    "ltx-2": _ltx2,
    **{name: functools.partial(pipelines_tiny.pipeline, name) for name in pipelines_tiny.PIPELINES},
}
"""Makers of pipelines, by the name of their folder."""


def saved(name: str, place: Path) -> Path:
    """The folder of a pipeline, written once."""
    folder = place / name
    if not folder.exists():
        FOLDERS[name]().save_pretrained(folder)
    return folder


def picture(path: Path, seed: int = 0, height: int = 48, width: int = 64) -> Path:
    """A picture of random levels."""
    levels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(levels).save(path)
    return path


def mask(path: Path, height: int = 48, width: int = 64) -> Path:
    """White in its left half."""
    left_half(height, width).save(path)
    return path


def lora(path: Path, seed: int = 0, block: str = "blocks.0.attn1", width: int = 48) -> Path:
    """Random adapters of two layers of a tiny Wan."""
    found = {}
    for number, layer in enumerate(("to_q", "to_v")):
        name = f"transformer.{block}.{layer}"
        found[f"{name}.lora_A.weight"] = noise(2, width, seed=seed + number)
        found[f"{name}.lora_B.weight"] = noise(width, 2, seed=seed + number + 10)
    save_file(found, path)
    return path


def clip(path: Path, frames: int = 9, height: int = 48, width: int = 64) -> Path:
    """A video of random levels as an array."""
    np.save(path, np.random.default_rng(5).integers(0, 255, (frames, height, width, 3), dtype=np.uint8))
    return path
