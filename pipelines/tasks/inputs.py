"""Which inputs a pipeline class takes, and under which names: a table from flags to arguments of its call."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from dittools.pipelines.errors import BadInput
from dittools.pipelines.tasks.classes import PipelineClass, others

NAMES: dict[str, tuple[str, ...]] = {
    "image": ("image", "cond_image", "input_images"),
    "last_image": ("last_image",),
    "reference": ("reference_images", "image_reference", "ref_image"),
    "video": ("video",),
    "control": ("control_image", "control_video", "pose_video", "controls"),
    "mask": ("mask_image", "mask", "mask_video", "control_mask"),
    "strength": ("strength", "denoise_strength", "cond_strength"),
}
"""Flags, and the names that arguments for them have, of which a call has one at most."""
FLAGS = tuple(NAMES)

CONDITIONS = ("LTXConditionPipeline", "LTX2ConditionPipeline", "LTX2DFRPipeline", "LTX2InContextPipeline")
"""Classes that take frames as a list of conditions, each with its place."""
VACE = "WanVACEPipeline"
OWN: dict[str, dict[str, str]] = {
    **{name: dict.fromkeys(("image", "last_image", "video"), "conditions") for name in CONDITIONS},
    VACE: {"image": "video", "last_image": "video", "control": "video"},
    "EasyAnimateInpaintPipeline": {"image": "video", "last_image": "video"},
}
"""What single classes take under another name."""
OWN["LTX2InContextPipeline"] = OWN["LTX2InContextPipeline"] | {"control": "reference_conditions"}
OWN["LTXConditionPipeline"] = OWN["LTXConditionPipeline"] | {"strength": "denoise_strength"}

MANY = frozenset(
    (
        *("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline", "QwenImageEditPlusPipeline"),
        *("ZImageOmniPipeline", "OmniGenPipeline", "GlmImagePipeline", "JoyImageEditPipeline", "BriaFiboEditPipeline"),
    )
)
"""Classes that take several pictures in the argument of --image, as references: for them, --reference is the same."""

_FILLED = r"^(?!EasyAnimate).*(Inpaint|Fill)"
_NEEDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"Img2Img|ImageToVideo|Image2Video|I2V(?!Long)|I2I|Edit(?!Plus)|Refiner|Framepack|Animate2?Pipeline", ("image",)),
    (_FILLED, ("image",)),
    (_FILLED, ("mask",)),
    (r"VideoToVideo|LucyEdit", ("video",)),
    (r"Control|Transfer|WanAnimate", ("control",)),
    (r"EditPlus", ("image", "reference")),
    (r"VideoToWorld|EasyAnimateInpaint", ("image", "video")),
)
"""Classes, by their names, whose call cannot do without one of these inputs though its signature may not say so."""


def argument_of(one: PipelineClass, flag: str) -> str | None:
    """The name of the argument that takes a flag's input; None where a class takes none."""
    own = OWN.get(one.name, {}).get(flag)
    if own is not None:
        return own
    if flag == "reference" and one.name in MANY:
        return argument_of(one, "image")
    if flag == "image" and one.name == "LTXI2VLongMultiPromptPipeline":
        return "cond_image"
    return next((name for name in NAMES[flag] if name in one.parameters), None)


def taken(one: PipelineClass) -> dict[str, str]:
    """Flag -> argument of a class's call."""
    found = {flag: argument_of(one, flag) for flag in FLAGS}
    return {flag: name for flag, name in found.items() if name is not None}


def needed(one: PipelineClass) -> list[tuple[str, ...]]:
    """Groups of flags, of each of which a class needs one."""
    takes = taken(one)
    groups = [(flag,) for flag, name in takes.items() if _required(one, name) and name != "conditions"]
    for pattern, flags in _NEEDS:
        known = tuple(flag for flag in flags if flag in takes)
        if known and re.search(pattern, one.name):
            groups.append(known)
    return list(dict.fromkeys(groups))


def _required(one: PipelineClass, argument: str) -> bool:
    return argument in one.parameters and one.parameters[argument].default is one.parameters[argument].empty


def fits(one: PipelineClass, given: Collection[str]) -> bool:
    """Whether a class takes all these inputs, and needs no other."""
    return set(given) <= taken(one).keys() and all(set(group) & set(given) for group in needed(one))


def choose(one: PipelineClass, given: Collection[str], folder: Path) -> PipelineClass:
    """The class that does what the inputs ask for: the folder's own, or another that its weights serve.

    Raises:
        BadInput: where none does, naming what the folder takes.
    """
    if fits(one, given):
        return one
    near = others(one, folder)
    for other in near:
        if fits(other, given):
            return other
    raise BadInput(_misfit(one, given, near, folder))


def _misfit(one: PipelineClass, given: Collection[str], near: Sequence[PipelineClass], folder: Path) -> str:
    takes = taken(one)
    strange = [flag for flag in given if flag not in takes]
    also = [f"{_flags(taken(other))} as {other.name}" for other in near if taken(other).keys() - takes.keys()]
    whole = f"{one.name} in {folder} takes {told(one)}" + (f"; its weights also take {'; '.join(also)}" if also else "")
    if strange:
        return f"{_flags(strange)}: {whole}"
    lacking = [group for group in needed(one) if not set(group) & set(given)]
    return f"{' and '.join(_flags(group, ' or ') for group in lacking)} is missing: {whole}"


def told(one: PipelineClass) -> str:
    """What a class takes beside text, for people."""
    takes, need = taken(one), needed(one)
    if not takes:
        return "text alone"
    alone = {group[0] for group in need if len(group) == 1}
    parts = [f"{_flag(flag)}{' (needed)' if flag in alone else ''}" for flag in takes]
    either = [f"one of {_flags(group)} is needed" for group in need if len(group) > 1]
    return ", ".join(parts) + (f" ({'; '.join(either)})" if either else "")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flags(names: Collection[str] | Mapping[str, Any], between: str = ", ") -> str:
    return between.join(map(_flag, names))
