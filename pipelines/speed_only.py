"""Models at their real shapes with random weights: how fast they run, and nothing about what they draw.

A model is made without memory first, and filled module by module on its device: no second copy ever exists.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch

from dittools.naming import unknown
from dittools.pipelines.errors import BadInput


@dataclass(frozen=True)
class Size:
    """What tells the sizes of a Wan transformer apart, and its text's."""

    layers: int
    heads: int
    head_dim: int
    ffn: int
    text_dim: int = 4096
    text_tokens: int = 512
    freq_dim: int = 256


# From the configs of Wan-AI/Wan2.1-T2V-1.3B-Diffusers and Wan-AI/Wan2.1-T2V-14B-Diffusers; tiny is ours.
SIZES: dict[str, dict[str, Size]] = {
    "wan": {
        "tiny": Size(layers=2, heads=2, head_dim=64, ffn=128, text_dim=32, text_tokens=16, freq_dim=32),
        "1.3b": Size(layers=30, heads=12, head_dim=128, ffn=8960),
        "14b": Size(layers=40, heads=40, head_dim=128, ffn=13824),
    }
}
STEPS = 50


class SpeedOnly:
    """As much of a pipeline as `dittools.accelerate` looks at. Its weights are random: it draws noise.

    Attributes:
        transformer: diffusers' own class.
        scheduler: its ``timesteps``.
        size: what it was made from.
    """

    def __init__(self, transformer: torch.nn.Module, size: Size):
        self.transformer = transformer
        self.transformer_2 = None
        self.scheduler = _Schedule()
        self.size = size


class _Schedule:
    def __init__(self):
        self.timesteps = torch.linspace(1000, 1000 / STEPS, STEPS)


def size_of(model: str, size: str, layers: int | None = None, heads: int | None = None) -> Size:
    """The size of a model by name, with other layers and heads where they are given.

    Raises:
        BadInput: for an unknown model or size, naming the nearest.
    """
    for flag, name, valid in (("--model", model, SIZES), ("--size", size, SIZES.get(model, ()))):
        if name not in valid:
            raise BadInput(unknown(flag, name, valid))
    found = SIZES[model][size]
    for flag, value in (("layers", layers), ("heads", heads)):
        if value is not None and value < 1:
            raise BadInput(f"--{flag} must be at least 1, got {value}")
        if value is not None:
            found = dataclasses.replace(found, **{flag: value})
    return found


def build(size: Size, device: torch.device, dtype: torch.dtype) -> SpeedOnly:
    """A Wan pipeline of this size, its transformer on the device."""
    from diffusers import WanTransformer3DModel

    # Buffers hold the tables of RoPE, which are computed and not random.
    with torch.device("meta"):
        model = WanTransformer3DModel(
            num_attention_heads=size.heads, attention_head_dim=size.head_dim, num_layers=size.layers, ffn_dim=size.ffn,
            text_dim=size.text_dim, freq_dim=size.freq_dim,
        )  # fmt: skip
    config = model.config
    model.rope = type(model.rope)(config.attention_head_dim, config.patch_size, config.rope_max_seq_len).to(device)
    generator = torch.Generator(device).manual_seed(0)
    in_fp32 = tuple(model._keep_in_fp32_modules or ())
    for path, module in model.named_modules():
        for name, old in list(module.named_parameters(recurse=False)):
            kept = any(part in f"{path}.{name}".split(".") for part in in_fp32)
            new = torch.empty(old.shape, device=device, dtype=torch.float32 if kept else dtype)
            _fill(name, new, generator)
            setattr(module, name, torch.nn.Parameter(new, requires_grad=False))
    left = [n for n, x in [*model.named_parameters(), *model.named_buffers()] if x.device.type == "meta"]
    if left:
        raise RuntimeError(f"{len(left)} tensors of {type(model).__name__} were not filled, such as {left[0]}")
    return SpeedOnly(model.eval(), size)


def _fill(name: str, x: torch.Tensor, generator: torch.Generator) -> None:
    """Weights that keep the size of what passes through; norms at 1; biases at 0."""
    if name == "bias":
        x.zero_()
    elif x.ndim == 1:
        x.fill_(1)
    else:
        fan_in = x.shape[-1] if name == "scale_shift_table" else math.prod(x.shape[1:])
        x.normal_(0, fan_in**-0.5, generator=generator)


def call_of(
    pipe: SpeedOnly, height: int, width: int, frames: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    """Arguments of one denoiser call, in the middle of the schedule, for a video of this size in pixels and frames."""
    generator = torch.Generator(device).manual_seed(1)
    size, channels = pipe.size, pipe.transformer.config.in_channels
    latents = (1, channels, (frames - 1) // 4 + 1, height // 8, width // 8)
    text = (1, size.text_tokens, size.text_dim)
    return {
        "hidden_states": torch.randn(latents, device=device, dtype=dtype, generator=generator),
        "timestep": pipe.scheduler.timesteps[STEPS // 2].to(device).expand(1),
        "encoder_hidden_states": torch.randn(text, device=device, dtype=dtype, generator=generator),
        "return_dict": False,
    }
