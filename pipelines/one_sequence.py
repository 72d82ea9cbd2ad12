"""Readers of sequences that a pipeline packs itself: text, sound, pictures and references in an order of its own.

Where each row is stands in tensors that are the same objects in every step. Reading them waits for the device, so what
they say is found again while they are given.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from math import prod
from typing import Any

import torch

from dittools.pipelines.errors import BadInput
from dittools.pipelines.rasters import clips
from dittools.tokens import Layout, Part

Arguments = Callable[[str], Any]
_Found = tuple[tuple[tuple[weakref.ref, int], ...], tuple, Layout]
_found: deque[_Found] = deque(maxlen=8)  # branches of a few pipelines; tensors are not held


def _once(tensors: Sequence[torch.Tensor], told: tuple, read: Callable[[], Layout]) -> Layout:
    """``read()``, or what it gave for these very tensors and plain values. Tensors that were written to are others."""
    for kept, plain, layout in _found:
        same = len(kept) == len(tensors) and plain == told
        if same and all(ref() is x and count == _writes(x) for (ref, count), x in zip(kept, tensors, strict=True)):
            return layout
    layout = read()
    _found.append((tuple((weakref.ref(x), _writes(x)) for x in tensors), told, layout))
    return layout


def _writes(x: torch.Tensor) -> int:
    """How often a tensor was written to, where that is counted."""
    return 0 if x.is_inference() else x._version


def _tensors(arguments: Arguments, *names: str) -> list[torch.Tensor]:
    found = [arguments(name) for name in names]
    for name, x in zip(names, found, strict=True):
        if not isinstance(x, torch.Tensor):
            raise BadInput(f"a packed sequence needs {name}, a tensor, and the call gives {type(x).__name__}")
    return found


def document(config: Any, arguments: Arguments, name: str) -> Layout:
    """MiniMax-H3: one document of rows, whose kinds are in ``text_indices``, ``audio_indices`` and ``video_indices``,
    and whose (time, row, column) in ``position_ids`` ``[S, 3]``.

    The last video rows are the picture; before it are keyframes and references. Their tags (``token_tags``) do not say
    which rows are text: those of a vision block have the tag of video.
    """
    tensors = _tensors(arguments, "position_ids", "text_indices", "audio_indices", "video_indices")
    return _once(tensors, (), lambda: _document(*(x.cpu() for x in tensors)))


def _document(places: torch.Tensor, *indices: torch.Tensor) -> Layout:
    kinds, rows = ("text", "sound", "video"), len(places)
    kind = torch.full((rows,), -1)
    for number, index in enumerate(indices):
        kind[index] = number
    if sum(map(len, indices)) != rows or (kind < 0).any():
        told = ", ".join(f"{len(index)} of {name}" for name, index in zip(kinds, indices, strict=True))
        raise BadInput(f"a packed sequence of {rows} rows has {told}: each row has to be of one kind")
    if (indices[-1].diff() < 0).any():
        raise BadInput("video_indices have to be in the order of the packed sequence")
    parts: list[Part] = []
    for run in torch.arange(rows).tensor_split((kind.diff() != 0).nonzero().flatten() + 1):
        found = kinds[int(kind[run[0]])]
        if found == "video":
            parts += [Part("reference", *clip) for clip in clips(places[run].T)]
        else:
            parts.append(Part(found, len(run)))
    last = max((number for number, part in enumerate(parts) if part.kind == "reference"), default=-1)
    beside = takewhile(lambda part: part.kind == "reference", reversed(parts[: last + 1]))
    # Every few rows are a raster: the picture is one only where all that it follows without a gap is one too.
    if last < 0 or any(part.shape is None for part in beside):
        raise BadInput("the position_ids of the last video rows are not those of frames, rows and columns")
    return Layout(*parts[last].shape, tuple(parts[:last]), tuple(parts[last + 1 :]), one_sequence=True)


def two_streams(config: Any, arguments: Arguments, name: str) -> Layout:
    """Cosmos 3: what is drawn attends to itself and to the text in front of it, which is causal and attends to itself
    alone. Grids are in ``vision_token_shapes``, places in ``.._sequence_indexes``.

    The picture is the largest of the pictures that are denoised; those that are given beside it are references.
    """
    text, rows = (int(arguments(each)) for each in ("und_len", "sequence_length"))
    given, tensors, shapes = [], [], []
    for kind, modality in (("vision", "vision"), ("sound", "sound"), ("sound", "action")):
        index, sizes = (arguments(f"{modality}_{each}") for each in ("sequence_indexes", "token_shapes"))
        if isinstance(index, torch.Tensor) and sizes is not None:
            given.append((kind, len(sizes)))
            tensors.append(index)
            shapes += [tuple(map(int, shape)) for shape in sizes]
    drawn = tuple(frames is None or len(frames) > 0 for frames in arguments("vision_noisy_frame_indexes") or ())
    told = (text, rows, tuple(given), tuple(shapes), drawn)
    return _once(tensors, told, lambda: _streams(text, rows, given, tensors, shapes, drawn))


def _streams(text: int, rows: int, given: list, tensors: list, shapes: list, drawn: tuple[bool, ...]) -> Layout:
    found, of = [], iter(shapes)
    for (kind, count), index in zip(given, tensors, strict=True):
        mine = [next(of) for _ in range(count)]
        sizes = [prod(shape) for shape in mine]
        for number, (shape, places) in enumerate(zip(mine, index.cpu().split(sizes), strict=True)):
            if not torch.equal(places, torch.arange(int(places[0]), int(places[0]) + len(places))):
                raise BadInput("the tokens of a picture or a sound have to follow each other in the packed sequence")
            draws = kind == "vision" and (number >= len(drawn) or drawn[number])
            found.append((int(places[0]), kind, shape, draws))
    found.sort()
    pictures = [
        (draws, prod(shape), -number) for number, (_, kind, shape, draws) in enumerate(found) if kind == "vision"
    ]
    if not pictures or sum(prod(shape) for _, _, shape, _ in found) != rows - text or found[0][0] != text:
        raise BadInput(f"a packed sequence of {rows} tokens, {text} of them text, needs the places of all others")
    at = -max(pictures)[2]
    parts = [
        Part.of("reference", *shape) if kind == "vision" else Part("sound", prod(shape)) for _, kind, shape, _ in found
    ]
    before = (Part("text", text, queries=False), *parts[:at])
    return Layout(*found[at][2], before, tuple(parts[at + 1 :]))
