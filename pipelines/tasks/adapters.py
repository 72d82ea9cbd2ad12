"""LoRA files: read and checked before weights are loaded, then put on a pipeline, each at its own scale."""

from __future__ import annotations

import json
import logging
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dittools import files
from dittools.pipelines import places
from dittools.pipelines.errors import BadInput, first_line
from dittools.pipelines.folder import check_safetensors
from dittools.pipelines.tasks.classes import PipelineClass

_PAIR = re.compile(r"\.(lora_A|lora_down|lora\.down)\b")
"""In the names of a file's tensors, one for each layer."""
_OTHER = re.compile(r"lora|loha|lokr|diff_b|\.alpha$")


FIRST, SECOND = "transformer", "transformer_2"
"""The transformers that a file may be for; the second denoises the later steps, of little noise."""


@dataclass(frozen=True)
class Lora:
    """A file, how much of it is added, and to which transformer of the pipeline."""

    path: Path
    scale: float
    digest: str
    layers: int
    onto: str = FIRST

    def facts(self) -> dict[str, Any]:
        """As a record has it."""
        found = {"file": str(self.path), "scale": self.scale, "sha256": self.digest}
        return found if self.onto == FIRST else {**found, "onto": self.onto}


def read(given: Sequence[str]) -> tuple[Lora, ...]:
    """The files of ``PATH[@TRANSFORMER][:SCALE]`` texts. Raises BadInput."""
    found = [_read(text) for text in given]
    for number, one in enumerate(found):
        if any((one.digest, one.onto) == (other.digest, other.onto) for other in found[:number]):
            raise BadInput(f"--lora {one.path} is given twice: give it once, with the sum of its scales")
    return tuple(found)


def _read(text: str) -> Lora:
    name, scale = text, 1.0
    head, colon, tail = text.rpartition(":")
    if colon and not Path(text).expanduser().exists():
        try:
            name, scale = head, float(tail)
        except ValueError:
            if not Path(head).suffix:
                head = ""
            if head:
                raise BadInput(f"--lora {places.shown(text)}: the scale must be a number, got {tail!r}") from None
    if not math.isfinite(scale) or abs(scale) > 100:
        raise BadInput(f"--lora {places.shown(text)}: the scale must be a number from -100 to 100, got {scale:g}")
    onto = FIRST
    before, at, last = name.rpartition("@")
    if at and last in (FIRST, SECOND) and not Path(name).expanduser().exists():
        name, onto = before, last
    path = Path(name).expanduser()
    if not name or not path.is_file():
        how = f"PATH, PATH:SCALE or PATH@{SECOND}:SCALE"
        raise BadInput(f"--lora: there is no file {places.shown(str(path))}: give a .safetensors file, as {how}")
    if path.suffix != ".safetensors":
        raise BadInput(f"--lora {places.shown(name)} is no .safetensors file, the only kind dittools loads: convert it")
    check_safetensors(path)
    names = _names(path)
    layers = sum(1 for one in names if _PAIR.search(one))
    if not layers:
        kind = "of another kind of adapter" if any(_OTHER.search(one) for one in names) else "of no LoRA"
        raise BadInput(f"--lora {places.shown(name)} holds the tensors {kind} ({_some(names)}): give a LoRA")
    return Lora(path, scale, files.sha256(path), layers, onto)


def paths(text: str) -> list[str]:
    """What may be the path in a text that names a file: all of it, or what comes before its scale or transformer."""
    head = text.rpartition(":")[0]
    return [text, head, *(one.rpartition("@")[0] for one in (text, head))]


def _names(path: Path) -> list[str]:
    with path.open("rb") as data:
        length = struct.unpack("<Q", data.read(8))[0]
        return [name for name in json.loads(data.read(length)) if name != "__metadata__"]


def _some(names: Sequence[str]) -> str:
    return names[0] if names else "none"


def check_class(one: PipelineClass, loras: Sequence[Lora], *, pair: bool) -> None:
    """Raises BadInput where a class takes no LoRA, or peft, which holds them, is not installed.

    ``pair``: whether the folder has two transformers.
    """
    if not loras:
        return
    if not hasattr(one.kind, "load_lora_weights"):
        raise BadInput(f"--lora: diffusers loads none into {one.name}")
    if find_spec("peft") is None:
        raise BadInput("--lora needs peft, which is not installed: pip install peft")
    for lora in loras if not pair else ():
        if lora.onto == SECOND:
            raise BadInput(f"--lora {lora.path}@{SECOND}: this folder has one transformer: leave @{SECOND} out")


def put_on(pipe: Any, loras: Sequence[Lora], note: Callable[[str], None]) -> None:
    """Load them into a pipeline, each as an adapter of its own.

    Raises:
        BadInput: for one that has no layer of this model, or layers of other sizes.
    """
    if not loras:
        return
    from safetensors.torch import load_file

    names = [f"lora_{number}" for number, _ in enumerate(loras)]
    pair = getattr(pipe, SECOND, None) is not None
    for name, lora in zip(names, loras, strict=True):
        second = {"load_into_transformer_2": True} if lora.onto == SECOND else {}
        try:
            with _quietly():
                pipe.load_lora_weights(load_file(lora.path), adapter_name=name, **second)
        except (
            ValueError,
            RuntimeError,
            KeyError,
            TypeError,
            AttributeError,
            IndexError,
            NotImplementedError,
        ) as error:
            raise BadInput(
                f"--lora {lora.path} does not fit this model ({_cause(error)}): give one made for it"
            ) from error
        there = _layers(pipe, name)
        if there == 0:
            raise BadInput(
                f"--lora {lora.path}: none of its {lora.layers} layers is in this model: give one made for it"
            )
        if there < lora.layers:
            note(f"{lora.path}: {lora.layers - there} of its {lora.layers} layers are not in this model, and left out")
    for part in {lora.onto for lora in loras} if pair else ():
        mine = [(name, lora.scale) for name, lora in zip(names, loras, strict=True) if lora.onto == part]
        getattr(pipe, part).set_adapters(*map(list, zip(*mine, strict=True)))
    if not pair:
        pipe.set_adapters(names, [lora.scale for lora in loras])
    elif all(lora.onto == FIRST for lora in loras):
        note(f"--lora is on the first transformer (high noise) of two: PATH@{SECOND} puts one on the other")


@contextmanager
def _quietly() -> Iterator[None]:
    """What libraries say of an error, or of a second adapter, is told by who asked."""
    import diffusers

    level = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers.utils.logging.set_verbosity(level)


def _layers(pipe: Any, name: str) -> int:
    """Layers of a pipeline that have an adapter of this name."""
    import torch

    models = {id(part): part for part in pipe.components.values() if isinstance(part, torch.nn.Module)}.values()
    held = [getattr(module, "lora_A", None) for model in models for module in model.modules()]
    return sum(1 for one in held if one is not None and name in one)


def _cause(error: BaseException) -> str:
    """What torch says of sizes stands in a later line than what it says of loading."""
    lines = [line.strip() for line in str(error).splitlines() if "size mismatch" in line]
    said = lines[0] if lines else first_line(error).partition(" Please ")[0]
    return said.rstrip(".")[:200]
