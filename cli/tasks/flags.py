"""Flags for what a pipeline takes beside text, and for how its weights are held."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated

from dittools.cli import _flags as f

INPUT = f.INPUT


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is given beside text; which of it a pipeline takes, its own call says."""

    image: Annotated[str | None, f.flag("--image", "Picture to start from, or to edit.", INPUT, "FILE")] = None
    last_image: Annotated[str | None, f.flag("--last-image", "Picture to end with.", INPUT, "FILE")] = None
    reference: Annotated[
        list[str] | None, f.flag("--reference", "Pictures of what is to appear; several.", INPUT, "FILE...")
    ] = None
    video: Annotated[str | None, f.flag("--video", "Video to draw over, or to go on from.", INPUT, "FILE")] = None
    control: Annotated[
        str | None, f.flag("--control", "Picture or video that leads: edges, depth, poses.", INPUT, "FILE")
    ] = None
    mask: Annotated[str | None, f.flag("--mask", "What is drawn anew, in white.", INPUT, "FILE")] = None
    strength: Annotated[
        float | None, f.flag("--strength", "How far from the input, in (0, 1].  [default: the pipeline's]", INPUT, "X")
    ] = None
    fps: Annotated[float | None, f.flag("--fps", "Frames in a second.  [default: the model's]", f.VIDEO, "X")] = None
    set: Annotated[
        list[str] | None,
        f.flag("--set", "Arguments of the pipeline's own, of the types that its call takes.", INPUT, "NAME=VALUE..."),
    ] = None
    lora: Annotated[
        list[str] | None,
        f.flag(
            "--lora",
            "Adapters laid over the weights, .safetensors alone; several. PATH@transformer_2 is for the second of a "
            "pair.",
            f.MODEL,
            "PATH[:SCALE]...",
        ),
    ] = None
    shift: Annotated[
        float | None, f.flag("--shift", "Of the noise schedule.  [default: the folder's]", f.VIDEO, "X")
    ] = None
    quantize: Annotated[
        str, f.flag("--quantize", "The transformer's weights in fewer bits.", f.MODEL, "none|fp8|int8|nf4")
    ] = "none"
    vae_tiling: Annotated[bool, f.flag("--vae-tiling", "Decode in tiles, in less memory.", f.MODEL)] = False


@dataclass(frozen=True, kw_only=True)
class Lists:
    """Several videos with one model."""

    prompts: Annotated[
        str | None,
        f.flag("--prompts", "A text file, one prompt a line, or N of ours: a video each.", f.VIDEO, "FILE|builtin[:N]"),
    ] = None
    seeds: Annotated[list[int] | None, f.flag("--seeds", "A video of each prompt for each.", f.VIDEO, "N N ...")] = None
    num_videos: Annotated[
        int | None, f.flag("--num-videos", "Videos of each prompt, with seeds from --seed on.", f.VIDEO, "N")
    ] = None


INPUTS = tuple(field.name for field in fields(Inputs))
NAMES = tuple(field.name for field in (*fields(Inputs), *fields(Lists)))
