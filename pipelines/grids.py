"""How many tokens a picture has along each axis, read from the arguments of a transformer's forward.

A reader gets the transformer's config, what gives an argument by name, and the name of the latents. It answers
(frames, height, width), or with two numbers more, the tokens before the picture and behind it; None is all
that the sequence has beyond the rest. Without them the record's text position decides.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dittools.pipelines.errors import BadInput

Arguments = Callable[[str], Any]
Answer = tuple[int, int, int] | tuple[int, int, int, int | None, int | None]


def _patch(config: Any) -> tuple[int, int, int]:
    """(frames, height, width) of a patch, however the config says it."""
    size = getattr(config, "patch_size", None)
    if isinstance(size, (tuple, list)):
        return (1, *size) if len(size) == 2 else (1, *(size * 2)) if len(size) == 1 else tuple(size)
    side = size or 1
    return getattr(config, "patch_size_t", None) or 1, side, side


def _latents(arguments: Arguments, name: str, axes: str) -> torch.Tensor:
    latents = arguments(name)
    if not isinstance(latents, torch.Tensor) or latents.ndim != len(axes.split()):
        found = list(latents.shape) if isinstance(latents, torch.Tensor) else type(latents).__name__
        raise BadInput(f"{name} has to be [{', '.join(axes.split())}], got {found}: is the pipeline a version ahead?")
    return latents


def _patches(config: Any, *size: int) -> Answer:
    return tuple(n // p for n, p in zip(size, _patch(config), strict=True))


def video(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, C, F, H, W]``."""
    return _patches(config, *_latents(arguments, name, "batch channels frames height width").shape[2:])


def frames_first(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, F, C, H, W]``."""
    frames, _, height, width = _latents(arguments, name, "batch frames channels height width").shape[1:]
    return _patches(config, frames, height, width)


def channels_last(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, F, H, W, C]``."""
    return _patches(config, *_latents(arguments, name, "batch frames height width channels").shape[1:4])


def image(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, C, H, W]``."""
    return _patches(config, 1, *_latents(arguments, name, "batch channels height width").shape[2:])


def image_or_video(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, C, H, W]`` or ``[B, C, F, H, W]``."""
    latents = arguments(name)
    return (image if getattr(latents, "ndim", 5) == 4 else video)(config, arguments, name)


def packed(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, tokens, C]``, with the grid in arguments of its own."""
    sizes = [arguments(axis) for axis in ("num_frames", "height", "width")]
    if any(size is None for size in sizes):
        raise BadInput("packed latents need num_frames, height and width, and the call does not give them")
    return _patches(config, *(int(size) for size in sizes))


def position_ids(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, tokens, C]`` with ids (image, row, column, ..) of each token; reference images come last."""
    ids = arguments("img_ids")
    ids = ids[0] if ids.ndim == 3 else ids
    return _rastered(ids, before=None)


def joint_ids(config: Any, arguments: Arguments, name: str) -> Answer:
    """Ids (.., row, column) of the whole sequence ``[text, image]``; latents have the image's tokens alone."""
    ids = arguments("position_ids")
    ids = ids[0] if ids.ndim == 3 else ids
    count = arguments(name).shape[1]
    return _rastered(ids[len(ids) - count :], before=None)


def _rastered(ids: torch.Tensor, before: int | None) -> Answer:
    """Tokens with the first token's image id are the picture, in raster order. Waits for the device."""
    ids = ids.cpu()
    mine = int((ids[:, 0] == ids[0, 0]).long().cumprod(0).sum())
    rows = ids[:mine, 1]
    other = (rows != rows[0]).nonzero()
    width = int(other[0]) if len(other) else mine
    height = mine // width
    if height * width != mine or not torch.equal(rows, rows[::width].repeat_interleave(width)):
        raise BadInput(f"the ids of {mine} image tokens are not those of rows and columns")
    return 1, height, width, before, len(ids) - mine


def shapes(config: Any, arguments: Arguments, name: str) -> Answer:
    """``img_shapes``: (frames, height, width) of the picture, then of reference images that follow it."""
    found = arguments("img_shapes")
    first = found[0]
    sizes = first if isinstance(first, list) else [first]
    (frames, height, width), *others = sizes
    return frames, height, width, None, sum(f * h * w for f, h, w in others)


def listed(config: Any, arguments: Arguments, name: str) -> Answer:
    """A list with latents ``[C, F, H, W]`` for each sample, all of one size."""
    found = arguments(name)
    if any(not isinstance(x, torch.Tensor) or x.shape != found[0].shape for x in found):
        raise BadInput(f"{name} holds pictures of several sizes, or several pictures a sample")
    frames, height, width = found[0].shape[1:]
    side, deep = arguments("patch_size") or 2, arguments("f_patch_size") or 1
    return frames // deep, height // side, width // side


def framepack(config: Any, arguments: Arguments, name: str) -> Answer:
    """History at three scales comes first, then the latents ``[B, C, F, H, W]``."""
    frames, height, width = video(config, arguments, name)
    history = 0
    for scale, part in ((1, "latents_clean"), (2, "latents_history_2x"), (4, "latents_history_4x")):
        given = arguments(part)
        if given is not None:
            deep, side = (_patch(config)[0], _patch(config)[1]) if scale == 1 else (scale, scale * _patch(config)[1])
            f, h, w = given.shape[2:]
            history += -(-f // deep) * -(-h // side) * -(-w // side)
    return frames, height, width, history, None


def after_history(config: Any, arguments: Arguments, name: str) -> Answer:
    """Whatever the sequence has before the latents ``[B, C, F, H, W]`` is history."""
    frames, height, width = video(config, arguments, name)
    return frames, height, width, None, 0


def square_or_sized(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, C, H, W]``, or packed ones with ``img_sizes`` in patches."""
    latents = arguments(name)
    if latents.ndim == 4:
        return image(config, arguments, name)
    height, width = (int(n) for n in arguments("img_sizes")[0])
    return 1, height, width


GRIDS: dict[str, Callable[[Any, Arguments, str], Answer]] = {
    reader.__name__: reader
    for reader in (
        video,
        frames_first,
        channels_last,
        image,
        image_or_video,
        packed,
        position_ids,
        joint_ids,
        shapes,
        listed,
        framepack,
        after_history,
        square_or_sized,
    )
}
