"""What the tiny pipelines of every class share: parts with fixed random weights, pictures, and their assembly."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
import torch

TEXT = 7  # text tokens of a prompt; a negative prompt has fewer where a pipeline takes masks


class Row(NamedTuple):
    """A tiny pipeline of one class, and what its call is given beside seed and steps.

    Args:
        within: makes a context for its calls, where a pipeline would draw much larger than a test can.
        dense: parts of the reasons for which some of its calls stay dense, and why that is right.
        runs: how many runs one call makes, of which a record tells the last.
        leaves_steps_out: whether its runs end before the schedule does.
        attentions: how often a forward of a self-attention module attends, on average.
    """

    pipe: Any
    call: dict[str, Any]
    within: Callable[[], AbstractContextManager] = nullcontext
    dense: dict[str, str] = {}
    runs: int = 1
    leaves_steps_out: bool = False
    attentions: float = 1


def fixed(make: Callable[[], Any]) -> Any:
    """What ``make`` gives, with weights that a seed fixes, ready to draw."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        part = make()
    return part.eval().requires_grad_(False) if isinstance(part, torch.nn.Module) else part


def once(make: Callable[[], Any]) -> Callable[[], Any]:
    """``make`` as a part that is built once and shared by pipelines."""
    return functools.cache(lambda: fixed(make))


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(height: int, width: int, seed: int = 0) -> PIL.Image.Image:
    levels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return PIL.Image.fromarray(levels)


def clip(frames: int, height: int, width: int) -> list[PIL.Image.Image]:
    return [picture(height, width, seed) for seed in range(frames)]


def left_half(height: int, width: int) -> PIL.Image.Image:
    """A mask that is white in its left half."""
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[:, : width // 2] = 255
    return PIL.Image.fromarray(mask)


def assemble(kind: type, parts: dict[str, Any], **call: Any) -> Row:
    """A pipeline of a class from those of the parts that it takes; the others are None."""
    wanted = list(inspect.signature(kind.__init__).parameters.values())[1:]
    needed = [p.name for p in wanted if p.default is p.empty]
    given = {p.name: parts[p.name] for p in wanted if p.name in parts}
    pipe = kind(**{**dict.fromkeys(needed), **given})
    pipe.set_progress_bar_config(disable=True)
    return Row(pipe, call)


def text(width: int, length: int = TEXT, seed: int = 1) -> torch.Tensor:
    """Features of one prompt ``[1, length, width]``."""
    return noise(1, length, width, seed=seed)


@functools.cache
def clip_vision(width: int):
    """A tiny CLIP image encoder."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return fixed(lambda: CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32, patch_size=16)))


@functools.cache
def clip_processor():
    """What prepares pictures for `clip_vision`."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def shown(length: int, of: int = TEXT) -> torch.Tensor:
    """A mask ``[1, of]`` that shows the first ``length`` tokens."""
    return (torch.arange(of) < length).long()[None]
