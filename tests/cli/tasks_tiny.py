"""Tiny pipeline folders for tasks beside text to video: random weights, with text encoders, so that a prompt is all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
from PIL import Image

from tests import pipelines_tiny
from tests.classes_tiny import wan
from tests.tiny import tiny_pipeline

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


FOLDERS: dict[str, Callable[[], Any]] = {
    "wan": _wan,
    "wan-i2v": lambda: _of_wan("WanImageToVideoPipeline", channels=36),
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


def clip(path: Path, frames: int = 9, height: int = 48, width: int = 64) -> Path:
    """A video of random levels as an array."""
    np.save(path, np.random.default_rng(5).integers(0, 255, (frames, height, width, 3), dtype=np.uint8))
    return path
