"""A transformer filled with random weights where it is to run, and the arguments of one call of it.

It is made without memory first, and filled module by module on its device: no second copy ever exists.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dittools.benchmarks.speed_only.record import Call, Size
from dittools.benchmarks.speed_only.table import RECORDS
from dittools.pipelines.families import find_family

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


def build(size: Size, device: torch.device, dtype: torch.dtype) -> SpeedOnly:
    """As much of a pipeline of this size as a call needs, its transformer on the device."""
    model = skeleton(size)
    # Tables of RoPE are computed and not random.
    for path, module in RECORDS[size.family].tables(model).items():
        model.set_submodule(path, module.to(device))
    generator = torch.Generator(device).manual_seed(0)
    in_fp32 = tuple(model._keep_in_fp32_modules or ())
    for path, module in model.named_modules():
        for name, old in list(module.named_parameters(recurse=False)):
            kept = any(part in f"{path}.{name}".split(".") for part in in_fp32)
            new = torch.empty(old.shape, device=device, dtype=torch.float32 if kept else dtype)
            _fill(name, new, generator)
            setattr(module, name, torch.nn.Parameter(new, requires_grad=False))
    left = _unfilled(model)
    if left:
        raise RuntimeError(f"{len(left)} tensors of {type(model).__name__} were not filled, such as {left[0]}")
    return SpeedOnly(model.eval(), size)


def skeleton(size: Size) -> torch.nn.Module:
    """The transformer of a size on the meta device: shapes without memory."""
    import diffusers

    with torch.device("meta"):
        return getattr(diffusers, find_family(size.family).transformer)(**size.config)


def _unfilled(model: torch.nn.Module) -> list[str]:
    """Names of what is still without memory: parameters, buffers, and tensors that modules hold as attributes."""
    named = [*model.named_parameters(), *model.named_buffers()]
    for path, module in model.named_modules():
        named += [(f"{path}.{n}", x) for n, x in vars(module).items() if isinstance(x, torch.Tensor)]
    return [name for name, x in named if x.device.type == "meta"]


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
    """Arguments of one denoiser call of batch 1, in the middle of the schedule, for this size in pixels and frames.

    Raises:
        BadInput: for a size that the model cannot take, naming the nearest ones that it can.
    """
    latents = pipe.size.latents(frames, height, width)
    timestep = pipe.scheduler.timesteps[STEPS // 2].to(device)
    generator = torch.Generator(device).manual_seed(1)
    call = Call(pipe.size, pipe.transformer.config, latents, timestep, dtype, generator)
    return {**RECORDS[pipe.size.family].arguments(call), "return_dict": False}


def forward_of(pipe: SpeedOnly, call: dict[str, Any]) -> Callable[[], torch.Tensor]:
    """What makes one call and gives its output. All calls are of one guidance branch, as pipelines name it: without a
    name, calls within a step would count as branches that may share a plan.
    """

    def forward() -> torch.Tensor:
        with pipe.transformer.cache_context("cond"):
            return pipe.transformer(**call)[0]

    return forward
