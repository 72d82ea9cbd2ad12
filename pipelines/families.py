"""What is known of each model family, as data. A new family is a record in one of the lists below."""

from __future__ import annotations

from typing import Any

from dittools.naming import unknown
from dittools.pipelines.errors import BadInput
from dittools.pipelines.family import Family
from dittools.pipelines.image_families import IMAGE
from dittools.pipelines.video_families import VIDEO

__all__ = ["FAMILIES", "Family", "family_of", "find_family", "transformers_of"]

FAMILIES: tuple[Family, ...] = (*VIDEO, *IMAGE)


def find_family(name: str) -> Family:
    """The family with this name or alias, in any case.

    Raises:
        BadInput: for an unknown name, naming the nearest.
    """
    for family in FAMILIES:
        if isinstance(name, str) and name.lower() in (family.name, *family.aliases):
            return family
    aliases = [alias for family in FAMILIES for alias in family.aliases]
    raise BadInput(unknown("model", name, [each.name for each in FAMILIES], aliases, listed="dittools models"))


def family_of(pipe: Any) -> Family:
    """The family of a diffusers pipeline.

    Raises:
        BadInput: when its transformer is of no known class.
    """
    for family in FAMILIES:
        if any(type(model).__name__ == family.transformer for _, model in transformers_of(pipe, family)):
            return family
    model = getattr(pipe, "transformer", None)
    found = type(pipe).__name__ + (f" with {type(model).__name__}" if model is not None else "")
    raise BadInput(f"cannot accelerate {found}: its transformer is of no known family (`dittools models` lists them)")


def transformers_of(pipe: Any, family: Family) -> list[tuple[str, Any]]:
    """(component name, transformer) of a pipeline, each once, without the wrapper of `torch.compile`."""
    found: dict[int, tuple[str, Any]] = {}
    for component in family.components:
        model = getattr(pipe, component, None)
        model = getattr(model, "_orig_mod", model)
        if model is not None:
            found.setdefault(id(model), (component, model))
    return list(found.values())
