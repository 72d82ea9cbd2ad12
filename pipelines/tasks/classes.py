"""Pipeline classes of diffusers: which one a folder is of, what its call takes, and which others its weights serve."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dittools.pipelines.components import INDEX, config_of, listed
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, Family
from dittools.pipelines.folder import read_index

_EXAMPLES = "it takes a grid of example pictures, which no flag gives"
REFUSED = {
    "QwenImageLayeredPipeline": "it draws layers with transparency, which no output here holds",
    "VisualClozePipeline": _EXAMPLES,
    "VisualClozeGenerationPipeline": _EXAMPLES,
    "LTX2HDRPipeline": "its frames are of high dynamic range, which no output here holds: use it in Python",
    "LTX2DFRTemporalRefinePipeline": "it refines the latents of another pipeline's run: use it in Python",
}
"""Classes that are known and not drawn with, and why."""
FRAME_COUNTS = ("num_frames", "frames", "video_length")
"""Names that calls have for the number of frames."""
_IMAGES = re.compile(r"T2I|I2I|TextToImage|Text2Image|VisualCloze")
_MIXED = frozenset({"cosmos", "kandinsky-5"})
"""Families that draw videos, with classes that draw images."""


@dataclass(frozen=True)
class PipelineClass:
    """A pipeline class and the family of the transformer that it is drawn with."""

    kind: type
    family: Family

    @property
    def name(self) -> str:
        return self.kind.__name__

    @functools.cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """Those of its call, without ``self``."""
        found = inspect.signature(self.kind.__call__).parameters
        return {name: one for name, one in found.items() if name != "self" and one.kind is not one.VAR_KEYWORD}

    @functools.cached_property
    def components(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of its constructor."""
        return {name: one for name, one in inspect.signature(self.kind.__init__).parameters.items() if name != "self"}

    @property
    def draws(self) -> str:
        """ "image" or "video"."""
        if self.family.draws == "image" or (self.family.name in _MIXED and _IMAGES.search(self.name)):
            return "image"
        return "video"

    @property
    def frames(self) -> str | None:
        """The name that its call has for the number of frames; None where an input decides it."""
        return next((name for name in FRAME_COUNTS if name in self.parameters), None)

    @property
    def sounds(self) -> bool:
        """Whether it makes sound as well."""
        return any(name in self.components for name in ("vocoder", "sound_tokenizer"))

    def default(self, name: str) -> Any:
        """The default of an argument of its call; None where it has none."""
        found = self.parameters.get(name)
        return None if found is None or found.default is found.empty else found.default

    def lacks(self, index: Mapping[str, Any]) -> list[str]:
        """Components that it needs and a model_index.json does not list."""
        optional = set(getattr(self.kind, "_optional_components", ()))
        there = {*listed(dict(index)), *(name for name, value in index.items() if not isinstance(value, list))}
        return [
            name
            for name, one in self.components.items()
            if one.default is one.empty and name not in optional and name not in there
        ]


def family_in(index: Mapping[str, Any]) -> Family | None:
    """The family of the transformers that a model_index.json lists; None for one that is not known."""
    there = listed(dict(index))
    for family in FAMILIES:
        if any(there.get(name, ("", ""))[1] == family.transformer for name in family.components):
            return family
    return None


def name_in(index: Mapping[str, Any]) -> str:
    """The class name that a model_index.json gives; empty where it is no text."""
    name = index.get("_class_name")
    return name if isinstance(name, str) else ""


def class_in(folder: Path) -> PipelineClass:
    """The class of a folder.

    Raises:
        BadInput: where diffusers has no such class, dittools does not know its transformer, or both do not go together.
    """
    index, place = read_index(folder), folder / INDEX
    family, name = family_in(index), name_in(index)
    if family is None:
        found = listed(index)
        has = next((found[part][1] for part in ("transformer", "unet", "prior") if part in found), "no transformer")
        raise BadInput(
            f"{place} is of a {name or 'class without a name'} with {has}, and dittools draws with pipelines around "
            "the transformers that it knows: `dittools models --json` lists them"
        )
    kind = class_named(name)
    if kind is None:
        raise BadInput(
            f"{place} is of a {name or 'class without a name'}, which this diffusers has not: get a newer diffusers, "
            "or a folder of another class"
        )
    if name in REFUSED:
        raise BadInput(f"{place} is of a {name}: {REFUSED[name]}")
    if not _takes_transformer(kind, family):
        others = ", ".join(family.text_to) or "another class"
        raise BadInput(
            f"{place} is of a {name}, and its transformer is a {family.transformer}, which goes with {others}: get the "
            "folder again"
        )
    return PipelineClass(kind, family)


def class_named(name: str) -> type | None:
    """A pipeline class of diffusers; None where there is none of that name."""
    import diffusers

    kind = getattr(diffusers, name, None) if name.isidentifier() and name.endswith("Pipeline") else None
    return kind if inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline) else None


def part_named(name: str) -> type | None:
    """A class of diffusers, as of a VAE; None where there is none of that name."""
    import diffusers

    return getattr(diffusers, name, None) if name.isidentifier() else None


def _takes_transformer(kind: type, family: Family) -> bool:
    types = " ".join(str(one.annotation) for one in inspect.signature(kind.__init__).parameters.values())
    return re.search(rf"\b{family.transformer}\b", types) is not None


Served = tuple[str, ...]
_SAME_WEIGHTS: tuple[Served, ...] = (
    ("WanPipeline", "WanVideoToVideoPipeline"),
    ("CogVideoXPipeline", "CogVideoXVideoToVideoPipeline"),
    ("LTXPipeline", "LTXImageToVideoPipeline"),
    ("LTX2Pipeline", "LTX2ImageToVideoPipeline", "LTX2ConditionPipeline"),
    (
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    ),
    ("ChromaPipeline", "ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    ("FluxKontextPipeline", "FluxKontextInpaintPipeline"),
    ("Flux2KleinPipeline", "Flux2KleinInpaintPipeline"),
)
"""Classes that one folder serves, beside those of diffusers' own AutoPipelines: the same components, and a transformer
that takes the same channels."""
_WHERE: tuple[tuple[Served, Callable[[Path], bool]], ...] = (
    (("WanPipeline", "WanImageToVideoPipeline"), lambda folder: bool(read_index(folder).get("expand_timesteps"))),
    (
        ("LTXPipeline", "LTXImageToVideoPipeline", "LTXConditionPipeline"),
        lambda folder: not config_of(folder / "scheduler").get("use_dynamic_shifting"),
    ),
)
"""The same where a folder says so: Wan 2.2 5B draws from text or from an image; LTX-Video takes conditions from 0.9.5
on, whose schedule does not shift with the size."""


def others(one: PipelineClass, folder: Path) -> list[PipelineClass]:
    """Other classes that the weights of a folder serve, the nearest first."""
    index = read_index(folder)
    groups = [group for group in (*_SAME_WEIGHTS, *_of_auto_pipelines()) if one.name in group]
    groups += [group for group, where in _WHERE if one.name in group and where(folder)]
    names = dict.fromkeys(name for group in groups for name in group if name != one.name)
    kinds = [PipelineClass(kind, one.family) for kind in map(class_named, names) if kind is not None]
    return [each for each in kinds if not each.lacks(index) and _takes_transformer(each.kind, one.family)]


@functools.cache
def _of_auto_pipelines() -> tuple[Served, ...]:
    """Classes that diffusers' AutoPipelines exchange for one another."""
    from diffusers.pipelines import auto_pipeline

    tables = [
        value
        for name, value in vars(auto_pipeline).items()
        if name.startswith("AUTO_") and name.endswith("_MAPPING") and isinstance(value, Mapping)
    ]
    keys = dict.fromkeys(key for table in tables for key in table)
    return tuple(tuple(dict.fromkeys(table[key].__name__ for table in tables if key in table)) for key in keys)
