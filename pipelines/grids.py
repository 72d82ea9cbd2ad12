"""How many tokens a picture has along each axis, read from the arguments of a transformer's forward.

A reader gets the transformer's config, what gives an argument by name, and the name of the latents. It answers
(frames, height, width), beside which the record's text position says where text is, or a `Layout` with all that the
sequence holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from dittools.pipelines.errors import BadInput
from dittools.tokens import Layout, Part

Arguments = Callable[[str], Any]
Answer = tuple[int, int, int] | Layout
TEXT = Part("text", None)


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
    return _rastered(ids)


def joint_ids(config: Any, arguments: Arguments, name: str) -> Answer:
    """Ids (.., row, column) of the whole sequence ``[text, image]``; latents have the image's tokens alone."""
    ids = arguments("position_ids")
    ids = ids[0] if ids.ndim == 3 else ids
    count = arguments(name).shape[1]
    return _rastered(ids[len(ids) - count :])


def _rastered(ids: torch.Tensor) -> Layout:
    """Text, the picture, which has the first token's image id, and reference images. Waits for the device."""
    ids = ids[:, :3].cpu()
    starts = (ids[1:, 0] != ids[:-1, 0]).nonzero().flatten() + 1
    picture, *others = ids.tensor_split(starts)
    shape = _raster(picture)
    if shape is None:
        raise BadInput(f"the ids of {len(picture)} image tokens are not those of rows and columns")
    parts, notes = [], []
    for other in others:
        for image in _apart(other):
            found = _raster(image)
            parts.append(Part("reference", len(image), found))
            if found is None:
                notes.append(
                    f"a reference image of {len(image)} tokens stays dense: its ids are not those of rows and columns"
                )
    return Layout(*shape, (TEXT,), tuple(parts), tuple(notes))


def _raster(ids: torch.Tensor) -> tuple[int, int, int] | None:
    """(1, rows, columns) of tokens with these ids (image, row, column), None where they are no such raster."""
    rows, columns = ids[:, 1], ids[:, 2]
    other = (rows != rows[0]).nonzero()
    width = int(other[0]) if len(other) else len(ids)
    height = len(ids) // width
    if height * width != len(ids):
        return None
    row = torch.equal(rows, rows[::width].repeat_interleave(width))
    return (1, height, width) if row and torch.equal(columns, columns[:width].repeat(height)) else None


def _apart(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Images that share an image id, cut where rows begin anew."""
    return ids.tensor_split((ids[1:, 1] < ids[:-1, 1]).nonzero().flatten() + 1)


def shapes(config: Any, arguments: Arguments, name: str) -> Layout:
    """``img_shapes``: (frames, height, width) of the picture, then of reference images that follow it."""
    found = arguments("img_shapes")
    first = found[0]
    picture, *others = first if isinstance(first, list) else [first]
    return Layout(*picture, (TEXT,), tuple(Part.of("reference", *shape) for shape in others))


def listed(config: Any, arguments: Arguments, name: str) -> Answer:
    """A list with latents ``[C, F, H, W]`` for each sample, all of one size."""
    found = arguments(name)
    if any(not isinstance(x, torch.Tensor) or x.shape != found[0].shape for x in found):
        raise BadInput(f"{name} holds pictures of several sizes, or several pictures a sample")
    frames, height, width = found[0].shape[1:]
    side, deep = arguments("patch_size") or 2, arguments("f_patch_size") or 1
    return frames // deep, height // side, width // side


def framepack(config: Any, arguments: Arguments, name: str) -> Layout:
    """History at three scales comes first, then the latents ``[B, C, F, H, W]``, an image of a vision tower, text."""
    side = _patch(config)[1]
    scales = {
        "latents_history_4x": (4, 4 * side, 4 * side),
        "latents_history_2x": (2, 2 * side, 2 * side),
        "latents_clean": (_patch(config)[0], side, side),
    }
    image, seen = arguments("image_embeds"), ()
    if image is not None:  # square where it is of patches alone
        count, edge = image.shape[1], math.isqrt(image.shape[1])
        seen = (Part("reference", count, (1, edge, edge) if edge**2 == count else None),)
    return Layout(*video(config, arguments, name), _history(arguments, scales), (*seen, TEXT))


def helios(config: Any, arguments: Arguments, name: str) -> Layout:
    """History at three scales comes first, then the latents ``[B, C, F, H, W]``."""
    deep, side = _patch(config)[0], _patch(config)[1]
    scales = {
        "latents_history_long": (4 * deep, 4 * side, 4 * side),
        "latents_history_mid": (2 * deep, 2 * side, 2 * side),
        "latents_history_short": (deep, side, side),
    }
    return Layout(*video(config, arguments, name), _history(arguments, scales))


def _history(arguments: Arguments, scales: dict[str, tuple[int, int, int]]) -> tuple[Part, ...]:
    """Those past latents ``[B, C, F, H, W]`` that are given, in tokens of so many latents an axis, cut ones too."""
    found = []
    for name, token in scales.items():
        given = arguments(name)
        if given is not None and arguments(f"indices_{name}") is not None:
            found.append(Part.of("history", *(-(-n // t) for n, t in zip(given.shape[2:], token, strict=True))))
    return tuple(found)


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
        helios,
        square_or_sized,
    )
}
