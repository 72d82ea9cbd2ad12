"""All models that are timed with random weights, and finding one and its size by name."""

from __future__ import annotations

import dataclasses

from dittools.benchmarks.speed_only.cogvideox import COGVIDEOX
from dittools.benchmarks.speed_only.hunyuan import HUNYUAN, HUNYUAN_15
from dittools.benchmarks.speed_only.images import FLUX, QWEN_IMAGE
from dittools.benchmarks.speed_only.ltx import LTX
from dittools.benchmarks.speed_only.record import Record, Size
from dittools.benchmarks.speed_only.wan import WAN
from dittools.naming import unknown
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import find_family

RECORDS: dict[str, Record] = {
    record.family: record for record in (WAN, HUNYUAN, HUNYUAN_15, COGVIDEOX, LTX, FLUX, QWEN_IMAGE)
}


def record_of(model: str) -> Record:
    """The record of a model by its family's name or an alias of it, with ``_`` or ``-``.

    Raises:
        BadInput: for a model that has none, naming the nearest that have.
    """
    names = {name: key for key in RECORDS for name in (key, *find_family(key).aliases)}
    asked = model.lower().replace("_", "-")
    if asked not in names:
        raise BadInput(unknown("--model", model, names))
    return RECORDS[names[asked]]


def size_of(model: str, size: str | None = None, layers: int | None = None, heads: int | None = None) -> Size:
    """The size of a model by name, with other layers and heads where they are given.

    Raises:
        BadInput: for an unknown model or size, naming the nearest.
    """
    record = record_of(model)
    size = size or record.default
    if size not in record.sizes:
        raise BadInput(unknown(f"--size of {record.family}", size, record.sizes))
    for flag, value in (("layers", layers), ("heads", heads)):
        if value is not None and value < 1:
            raise BadInput(f"--{flag} must be at least 1, got {value}")
    return dataclasses.replace(record.sizes[size], family=record.family).changed(layers, heads)
