"""What a pipeline class draws by default, as data with its source: `pipelines/presets.json`."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Preset:
    """Settings of a class for its checkpoint; None is left to the pipeline.

    Args:
        pipeline: the class.
        family: of `dittools.pipelines.families`.
        repo: the checkpoint that they are of.
        frames, height, width: of what it draws; an image has one frame and no entry for it.
        shift: of the noise schedule; a folder's own scheduler goes before it.
        fps: of a video.
        source: where they are from.
    """

    pipeline: str
    family: str
    source: str
    repo: str | None = None
    frames: int | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    guidance: float | None = None
    shift: float | None = None
    fps: float | None = None
    negative_prompt: str | None = None


@functools.cache
def presets() -> tuple[Preset, ...]:
    """All of them, in the order of the file."""
    found = json.loads((Path(__file__).parents[1] / "presets.json").read_text(encoding="utf-8"))
    return tuple(Preset(**one) for one in found["presets"])


def preset_of(pipeline: str) -> Preset | None:
    """That of a class; None where it has none."""
    return next((one for one in presets() if one.pipeline == pipeline), None)


def defaults_of(pipeline: str, family: Any) -> dict[str, Any]:
    """What a class draws by default: its preset, else the sizes of its family's record.

    Args:
        family: a `dittools.pipelines.family.Family`.
    """
    names = ("frames", "height", "width", "steps", "guidance", "fps")
    found: dict[str, Any] = {name: getattr(family, name) for name in names}
    preset = preset_of(pipeline)
    if preset is not None:
        found |= {name: value for name in names if (value := getattr(preset, name)) is not None}
    if family.draws == "image":
        found["frames"] = None
    return found | {"negative_prompt": preset.negative_prompt if preset else None}
