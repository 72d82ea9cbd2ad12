"""Pixels and frames to tokens, by a family's record or the configs of a pipeline folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from dittools.pipelines import strides
from dittools.pipelines.errors import BadInput
from dittools.pipelines.family import Family
from dittools.pipelines.limits import SizeRule

if TYPE_CHECKING:
    from dittools.tokens import Layout, TokenGrid


def size_rule(family: Family, folder: Path | None = None) -> SizeRule:
    """Which frames and sizes a checkpoint takes: the one in the folder, else the family's default one."""
    told = strides.told(family.name, folder)
    time, side = family.strides
    rule = SizeRule._of(
        told.time or time,
        told.side or side,
        told.patch or family.patch,
        positions=told.positions or family.positions,
        multiple=family.multiple,
        filled=family.fills_frames,
    )
    if family.groups is None:
        return rule
    (together, _), (beside, _) = family.groups
    first, longest = family.span or (beside, None)
    return dataclasses.replace(rule, frames=together, first=first, groups=family.groups, longest=longest)


def with_text(family: Family, layout: Layout) -> TokenGrid:
    """The grid of a picture with as much text as the family takes, where text shares the sequence."""
    text = {"first": {"before": family.text_tokens}, "last": {"after": family.text_tokens}}
    return dataclasses.replace(layout, **text.get(family.text_position, {})).grid()


def grid_of(family: Family, *, frames: int | None, height: int | None, width: int | None) -> TokenGrid:
    """Tokens of a picture of this size, with as much text as the family takes at most.

    Args:
        family: its record.
        frames, height, width: of the video, in frames and pixels; an image is one frame.

    Raises:
        BadInput: when the record has no sizes, or the checkpoint cannot draw this one.
    """
    if family.strides is None or family.layers is None:
        raise BadInput(f"the record of {family.name} has no sizes of a checkpoint to plan with")
    missing = [name for name, value in (("frames", frames), ("height", height), ("width", width)) if value is None]
    if missing:
        raise BadInput(f"{family.name} has no default for --{', --'.join(missing)}: give it")
    if family.draws == "image" and frames != 1:
        raise BadInput(f"{family.name} generates images: --frames is 1, got {frames}")
    rule = size_rule(family)
    rule.check(frames, height, width)
    return with_text(family, rule.layout(frames, height, width))
