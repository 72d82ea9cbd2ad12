"""Enter a pipeline: find its self-attention, and what is wrong before anything is touched."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from dittools.attention_profile import Model as Identity
from dittools.attention_profile import fingerprint
from dittools.caches.state import Model
from dittools.config import Config
from dittools.pipelines import signals
from dittools.pipelines.attachment import Attachment, present_on
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import family_of, transformers_of
from dittools.pipelines.family import Family
from dittools.pipelines.seats import can_enter
from dittools.pipelines.step_reuse import blocks_of
from dittools.runtime import Layer, Runtime


def attach(pipe: Any, config: Config) -> Attachment:
    """Route the self-attention of a pipeline through a new `Runtime`.

    What is already on one of its transformers gives way to it. Whatever is wrong is found before anything changes.

    Raises:
        BadInput: when the pipeline is of no known family, or its self-attention cannot be reached.
        ValueError: when the runtime cannot do what the config asks with this model.
    """
    family = family_of(pipe)
    if family.why_not is not None:
        raise BadInput(f"sparse attention cannot run in {family.name}: {family.why_not}")
    models = transformers_of(pipe, family)
    modules = []
    for component, model in models:
        inside = [(path, module) for path, module in model.named_modules() if family.is_self_attention(path)]
        if not inside:
            paths = " or ".join(family.self_attention)
            raise BadInput(f"{component} has no module {paths}: is it of the family {family.name}?")
        modules += [(Layer(f"{component}.{path}", depth), module) for depth, (path, module) in enumerate(inside)]
    present = {}  # each once, in order
    for layer, module in modules:
        one = present_on(module)
        if one is not None:
            present[id(one)] = one
        elif not can_enter(module.processor):
            found = type(module.processor).__name__
            raise BadInput(
                f"{layer.name} runs {found}, which neither uses diffusers' attention dispatcher nor calls "
                "PyTorch's attention itself, or has attributes in __slots__: give the module its own processor back"
            )
    known = facts(pipe, family, models)
    runtime = Runtime(config, [layer for layer, _ in modules], known, _identity(pipe, models, modules))
    attachment = Attachment(pipe, family, models, modules, runtime)
    attachment.take_over(list(present.values()))
    return attachment


def facts(pipe: Any, family: Family, models: list[tuple[str, torch.nn.Module]]) -> Model:
    """What a cache's profile may ask of these transformers."""
    first = models[0][1]
    reference, theirs = weakref.ref(first), weakref.ref(pipe)
    paths = [path for path, _ in first.named_modules() if family.is_self_attention(path)]

    def changes(signal: str, timesteps: Sequence[float]) -> list[float] | None:
        return signals.time_changes(reference(), signal, timesteps)

    return Model(
        type(first).__name__,
        dict(first.config),
        len(models),
        time_changes=changes,
        pipeline=type(pipe).__name__,
        block_input=signals.knows_input(blocks_of(first, paths)[0]),
        takes_over=lambda timesteps: signals.takes_over(theirs(), timesteps),
        channels=family.channels,
    )


def _identity(pipe: Any, models: list[tuple[str, Any]], modules: list[tuple[Layer, Any]]) -> Identity:
    """What a profile of this pipeline has to fit."""
    schedule = getattr(getattr(pipe, "scheduler", None), "config", {})
    shift = schedule.get("flow_shift", schedule.get("shift"))
    return Identity(
        transformer=type(models[0][1]).__name__,
        fingerprint=fingerprint([dict(model.config) for _, model in models]),
        layers=len(modules),
        heads=getattr(modules[0][1], "heads", 0),
        shift=None if shift is None else float(shift),
    )
