"""Pixels and frames to tokens, by a family's record: for plans made without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dittools.pipelines.errors import BadInput
from dittools.pipelines.family import Family
from dittools.pipelines.limits import SizeRule

if TYPE_CHECKING:
    from dittools.tokens import TokenGrid


def size_rule(family: Family) -> SizeRule:
    """Which frames and sizes the family's default checkpoint takes; frames are any where it draws images."""
    time, side = family.strides
    return SizeRule(frames=time, height=side * family.patch[1], width=side * family.patch[2])


def grid_of(family: Family, *, frames: int | None, height: int | None, width: int | None) -> TokenGrid:
    """Tokens of a picture of this size, with as much text as the family takes at most.

    Args:
        family: its record.
        frames, height, width: of the video, in frames and pixels; an image is one frame.

    Raises:
        BadInput: when the record has no sizes, or the checkpoint cannot draw this one.
    """
    from dittools.tokens import Layout

    if family.strides is None or family.layers is None:
        raise BadInput(f"the record of {family.name} has no sizes of a checkpoint to plan with")
    missing = [name for name, value in (("frames", frames), ("height", height), ("width", width)) if value is None]
    if missing:
        raise BadInput(f"{family.name} has no default for --{', --'.join(missing)}: give it")
    if family.draws == "image" and frames != 1:
        raise BadInput(f"{family.name} draws images: --frames is 1, got {frames}")
    size_rule(family).check(frames, height, width)
    time, side = family.strides
    deep, high, wide = family.patch
    text = (family.text_tokens, 0) if family.text_position == "first" else (0, family.text_tokens)
    return Layout((frames - 1) // time // deep + 1, height // side // high, width // side // wide, *text).grid()
