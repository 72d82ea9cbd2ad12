"""How many tokens a picture has along each axis, read from the arguments of a transformer's forward.

A reader gets the transformer's config, what gives an argument by name, and the name of the latents. It answers
(frames, height, width), beside which the record's text position says where text is, or a `Layout` with all that the
sequence holds.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch

from dittools.pipelines import one_sequence
from dittools.pipelines.errors import BadInput
from dittools.pipelines.rasters import Clip, clips, raster
from dittools.tokens import Layout, Part

Arguments = Callable[[str], Any]
Answer = tuple[int, int, int] | Layout
Reader = Callable[[Any, Arguments, str], Answer]
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


def _of_axes(axes: str) -> Reader:
    """Reads latents with these axes; without frames they are an image."""

    def read(config: Any, arguments: Arguments, name: str) -> Answer:
        size = dict(zip(axes.split(), _latents(arguments, name, axes).shape, strict=True))
        return _patches(config, size.get("frames", 1), size["height"], size["width"])

    return read


video = _of_axes("batch channels frames height width")
image = _of_axes("batch channels height width")


def image_or_video(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, C, H, W]`` or ``[B, C, F, H, W]``."""
    latents = arguments(name)
    return (image if getattr(latents, "ndim", 5) == 4 else video)(config, arguments, name)


def packed(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, tokens, C]``, with the grid in arguments of its own, or in coordinates of each token.

    What the sequence has beyond the grid (frames that lead it, references, slots that are filled) is behind the
    picture, or where the coordinates say.
    """
    count = _latents(arguments, name, "batch tokens channels").shape[1]
    sizes, coordinates = [arguments(axis) for axis in ("num_frames", "height", "width")], arguments("video_coords")
    # Sizes of 1 are given where coordinates count.
    if None not in sizes and (coordinates is None or math.prod(map(int, sizes)) > 1):
        shape = _patches(config, *(int(size) for size in sizes))
        if math.prod(shape) == count:
            return shape
        if math.prod(shape) > count:
            raise BadInput(f"a grid of {' x '.join(map(str, shape))} has more tokens than the {count} of {name}")
        found = [Clip(count - math.prod(shape), None)]
        if coordinates is not None:
            found = clips(_of_one(coordinates)[:, math.prod(shape) :])
        return Layout(*shape, 0, tuple(Part("reference", *clip) for clip in found))
    if coordinates is None:
        raise BadInput("packed latents need num_frames, height and width, or video_coords, and the call gives neither")
    found = clips(_of_one(coordinates))
    picture = max(range(len(found)), key=lambda number: (found[number].shape is not None, found[number].tokens))
    if found[picture].shape is None or found[picture].tokens < count / 4:  # every few tokens in a row are a raster
        raise BadInput(f"the video_coords of {count} tokens are not those of frames, rows and columns")
    before, after = (
        tuple(Part("reference", *clip) for clip in side) for side in (found[:picture], found[picture + 1 :])
    )
    return Layout(*found[picture].shape, before, after)


def _of_one(coordinates: torch.Tensor) -> torch.Tensor:
    """Where the tokens of the first sample begin ``[3, S]``, of coordinates ``[B, 3, S]`` or with ends ``[.., 2]``."""
    return coordinates[0] if coordinates.ndim == 3 else coordinates[0, ..., 0]


def position_ids(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, tokens, C]`` with ids (image, row, column, ..) of each token; reference images come last."""
    ids = _ids(arguments, "img_ids")
    kept = arguments("num_ref_tokens") if arguments("kv_cache_mode") == "extract" else 0
    if not kept:
        return _rastered(ids)
    # FLUX.2 Klein keeps the keys of reference images: these come first, and see themselves alone.
    picture = _rastered(ids[kept:])
    return dataclasses.replace(picture, before=(TEXT, Part("reference", kept)))


def joint_ids(config: Any, arguments: Arguments, name: str) -> Answer:
    """Ids (.., row, column) of the whole sequence ``[text, image]``; latents have the image's tokens alone."""
    ids = _ids(arguments, "position_ids")
    count = arguments(name).shape[1]
    return _rastered(ids[len(ids) - count :])


def _ids(arguments: Arguments, name: str) -> torch.Tensor:
    """Ids of each token ``[tokens, axes]``, also where every sample has its own."""
    ids = arguments(name)
    if not isinstance(ids, torch.Tensor) or ids.ndim not in (2, 3):
        found = list(ids.shape) if isinstance(ids, torch.Tensor) else type(ids).__name__
        raise BadInput(f"{name} has to be [tokens, axes], got {found}")
    return ids[0] if ids.ndim == 3 else ids


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
    found = raster(ids[:, 1], ids[:, 2])
    return None if found is None else (1, *found)


def _apart(ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Images that share an image id, cut where rows begin anew."""
    return ids.tensor_split((ids[1:, 1] < ids[:-1, 1]).nonzero().flatten() + 1)


def conditioned(config: Any, arguments: Arguments, name: str) -> Layout:
    """Latents ``[B, C, H, W]`` behind a prompt ``input_ids [B, n]``, with input images in it, and a token of the time.

    All of that sees what is before it, and the picture sees all (OmniGen, arXiv 2409.11340, section 2.2).
    """
    prompt = arguments("input_ids")
    notes = ("input images stay dense: they are in the prompt, at places of their own in every sample",)
    return Layout(
        *image(config, arguments, name),
        1 if prompt is None else prompt.shape[1] + 1,
        notes=notes if arguments("input_img_latents") else (),
    )


def segments(config: Any, arguments: Arguments, name: str) -> Layout:
    """A packed sequence ``[B, tokens, C]`` with an ``indicator`` of what each token is and ``segment_ids`` of whose;
    the pictures have ``position_ids`` (.., row, column). Waits for the device.

    The first picture is the picture; those of other segments follow as references, which the mask keeps apart.
    """
    _latents(arguments, name, "batch tokens channels")
    ids = _ids(arguments, "position_ids").cpu()
    drawn, owner = (arguments(axis).cpu() for axis in ("indicator", "segment_ids"))
    drawn = drawn == 2  # OUTPUT_IMAGE_INDICATOR
    if (drawn != drawn[:1]).any():
        raise BadInput("the pictures of a batch are at different places of their sequences")
    changes = (drawn[0, 1:] != drawn[0, :-1]) | (drawn[0, 1:] & (owner[0, 1:] != owner[0, :-1]))
    found: list[tuple[Part, bool]] = []
    for run in torch.arange(len(ids)).tensor_split(changes.nonzero().flatten() + 1):
        shape = _raster(ids[run]) if drawn[0, run[0]] else None
        found.append((Part("reference" if drawn[0, run[0]] else "text", len(run), shape), shape is not None))
    first = next((number for number, (_, grid) in enumerate(found) if grid), None)
    if first is None:
        raise BadInput("no run of image tokens has position_ids of rows and columns")
    before, after = (tuple(part for part, _ in side) for side in (found[:first], found[first + 1 :]))
    return Layout(*found[first][0].shape, before, after)


def shapes(config: Any, arguments: Arguments, name: str) -> Layout:
    """``img_shapes``: (frames, height, width) of the picture, then of reference images that follow it."""
    found = arguments("img_shapes")
    if not isinstance(found, (list, tuple)) or not found:
        raise BadInput("packed latents need img_shapes, a list for each sample, and the call gives none")
    first = found[0]
    picture, *others = first if isinstance(first, list) else [first]
    if getattr(config, "use_layer3d_rope", False):
        # Qwen-Image-Layered draws layers, which are frames to its positions; the last image is the reference.
        layers = [picture, *others[:-1]]
        if len(set(map(tuple, layers))) == 1:
            picture, others = (len(layers) * picture[0], *picture[1:]), others[-1:]
    return Layout(*picture, 0, tuple(Part.of("reference", *shape) for shape in others))


def listed(config: Any, arguments: Arguments, name: str) -> Answer:
    """A list with latents ``[C, F, H, W]`` for each sample, all of one size."""
    found = arguments(name)
    if not isinstance(found, (list, tuple)) or any(
        not isinstance(x, torch.Tensor) or x.shape != found[0].shape for x in found
    ):
        raise BadInput(f"{name} has to be a list of one picture a sample, all of one size")
    frames, height, width = found[0].shape[1:]
    side, deep = arguments("patch_size") or 2, arguments("f_patch_size") or 1
    return Layout(frames // deep, height // side, width // side, one_sequence=True)


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
    history = _history(arguments, scales)
    return Layout(*video(config, arguments, name), history, (*seen, TEXT), behind_apart=True)


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


def chunks(config: Any, arguments: Arguments, name: str) -> Layout:
    """Latents ``[B, F, C, H, W]`` of one chunk of frames, beside kept keys of earlier chunks: coarse ones, then fine
    ones. The keys are filled up to a multiple of 128, and what fills them is seen (AnyFlow, FAR arXiv 2503.19325).

    Without kept keys, or where these are written, the latents are of all chunks, the earlier ones coarse.
    """
    _, frames, _, height, width = _latents(arguments, name, "batch frames channels height width").shape
    flag, partition = arguments("kv_cache_flag") or {}, list(arguments("chunk_partition"))
    reads = arguments("kv_cache") is not None and not flag.get("is_cache_step")
    # One chunk less stays fine where they are kept, for the one that is next.
    fine = config.full_chunk_limit - (arguments("kv_cache") is not None and not reads)
    count = 1 + flag["num_cached_chunks"] if reads else len(partition)
    coarse = max(count - fine, 0)
    small = config.compressed_patch_size
    past = Part.of("history", sum(partition[:coarse]), height // small[1], width // small[2]) if coarse else None
    _, rows, columns = _patches(config, frames, height, width)
    if not reads:
        frames = sum(partition[coarse:])
        return Layout(frames, rows, columns, () if past is None else (past,), (Part("history", None),))
    kept = sum(partition[coarse : count - 1])
    before = [past, Part.of("history", kept, rows, columns) if kept else None]
    filled = -frames * rows * columns % 128
    before = tuple(dataclasses.replace(part, queries=False) for part in before if part is not None)
    return Layout(frames, rows, columns, before, (Part("history", filled, seen_by=(0, frames)),) if filled else ())


def animated(config: Any, arguments: Arguments, name: str) -> Layout:
    """A list of latents ``[C, F, H, W]``, whose frames after the first also see kept keys of a reference video, each
    those of its own frame. Queries and keys are filled up to multiples of 128, which nobody sees (Wan Animate 2).
    """
    frames, height, width = listed_sizes(config, arguments(name))
    if arguments("kv_cache_mode") == "extract":
        return Layout(frames, height, width)
    most, area = arguments("origin_len") // 4 + 1, math.prod(arguments("origin_area")) // 256
    kept = [int(n) for n in arguments("reference_grid_sizes")[0]]
    if frames != most + 1 or height * width != area or kept != [most, height, width]:
        raise BadInput(
            f"{frames} frames of {height} x {width} tokens and kept ones of {kept} do not fill the mask of {most} "
            f"frames of {area} tokens"
        )
    filled = [-n * area % 128 for n in (frames, most)]
    own = tuple(
        Part("reference", area, (1, height, width), queries=False, seen_by=(frame, frame + 1))
        for frame in range(1, frames)
    )
    ahead = (Part("reference", filled[0], seen_by=(0, 0)),) if filled[0] else ()
    behind = (Part("reference", filled[1], queries=False, seen_by=(0, 0)),) if filled[1] else ()
    return Layout(frames, height, width, 0, (*ahead, *own, *behind))


def listed_sizes(config: Any, found: Any) -> tuple[int, int, int]:
    """(frames, height, width) in tokens of a list of latents ``[C, F, H, W]`` of one size."""
    if not isinstance(found, (list, tuple)) or any(x.shape != found[0].shape for x in found):
        raise BadInput("the latents have to be a list of one picture a sample, all of one size")
    return _patches(config, *found[0].shape[1:])


def square_or_sized(config: Any, arguments: Arguments, name: str) -> Answer:
    """Latents ``[B, C, H, W]``, or packed ones with ``img_sizes`` in patches."""
    latents = arguments(name)
    sizes = arguments("img_sizes")
    if latents.ndim == 4 or sizes is None:
        return image(config, arguments, name)
    height, width = (int(n) for n in sizes[0])
    return 1, height, width


GRIDS: dict[str, Reader] = {
    "video": video,
    "frames_first": _of_axes("batch frames channels height width"),
    "channels_last": _of_axes("batch frames height width channels"),
    "image": image,
    "image_or_video": image_or_video,
    "packed": packed,
    "position_ids": position_ids,
    "joint_ids": joint_ids,
    "conditioned": conditioned,
    "segments": segments,
    "shapes": shapes,
    "listed": listed,
    "framepack": framepack,
    "helios": helios,
    "square_or_sized": square_or_sized,
    "chunks": chunks,
    "animated": animated,
    "document": one_sequence.document,
    "two_streams": one_sequence.two_streams,
}
