"""Is a diffusers pipeline folder whole? Answered from file names and headers, before anything is loaded."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Collection
from pathlib import Path

from dittools.pipelines import places
from dittools.pipelines.components import INDEX, check_listed, listed
from dittools.pipelines.errors import BadInput

# The longest header that the format allows; a file is its length in 8 bytes, the header as JSON, the tensors.
_HEADER_LIMIT = 100_000_000


def check_folder(folder: Path, classes: Collection[str] = ()) -> None:
    """Raise BadInput, naming the file, unless `folder` holds a whole pipeline of one of `classes`.

    An empty `classes` means any. Only safetensors count as weights: a pickled `.bin` file can run code when
    it is read, so none is ever used.
    """
    if not os.path.isdir(folder):  # which takes names that are too long for a file as well
        name = places.shown(str(folder))
        raise BadInput(f"no weights folder at {name}: give a diffusers pipeline folder, a repo id, or embedded")
    index = folder / INDEX
    if not index.is_file():
        raise BadInput(f"{folder} has no {INDEX}, so it is no diffusers pipeline folder: point --weights at one")
    found = _json(index)
    name = found.get("_class_name")
    if classes and name not in classes:
        raise BadInput(f"{index} is of a {name}, where one of these is needed: {', '.join(sorted(classes))}")
    for component in listed(found):
        _check_component(folder / component, index)
    check_listed(folder, found)


def _check_component(folder: Path, index: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise BadInput(f"{index} lists {folder.name}, and {folder} is missing or empty: get the files again")
    if not (folder / "config.json").is_file():
        return  # a scheduler or a tokenizer: no weights
    for shards in folder.glob("*.safetensors.index.json"):
        for name in sorted(set(_json(shards).get("weight_map", {}).values())):
            if not (folder / name).is_file():
                raise BadInput(f"{folder / name} is missing ({shards.name} lists it): get the files again")
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{folder} has no .safetensors file, the only kind dittools loads: convert or get them")
    for file in files:
        check_safetensors(file)


def check_safetensors(file: Path) -> None:
    """Raise BadInput unless the header is sound and the file is exactly as long as it says."""
    try:
        size = file.stat().st_size
        with file.open("rb") as data:
            start = data.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else _HEADER_LIMIT + 1
            header = json.loads(data.read(length)) if length <= min(_HEADER_LIMIT, size) else None
        ends = [entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise BadInput(f"{file} is corrupt (no sound safetensors header): get the file again") from None
    if size != expected:
        state = "cut short" if size < expected else "too long"
        raise BadInput(f"{file} is {state} ({size} bytes, its header says {expected}): get the file again")


def read_index(folder: Path) -> dict:
    """What a pipeline folder lists. Raises BadInput."""
    return _json(folder / INDEX)


def _json(path: Path) -> dict:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{path} is no JSON object: get the file again")
    return found
