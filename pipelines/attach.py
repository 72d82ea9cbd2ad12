"""Enter a pipeline: find its self-attention, and what is wrong before anything is touched."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from dittools.caches.state import Model
from dittools.config import Config
from dittools.pipelines import signals
from dittools.pipelines.attachment import Attachment, present_on
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import family_of, transformers_of
from dittools.pipelines.family import Family
from dittools.pipelines.seats import can_enter
from dittools.pipelines.skeleton import identity
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
        inside = family.attention_in(model)
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
    layers, attention = zip(*modules, strict=True)
    schedule = getattr(getattr(pipe, "scheduler", None), "config", {})
    profiled = identity([model for _, model in models], attention, schedule)
    runtime = Runtime(config, list(layers), facts(pipe, family, models), profiled)
    attachment = Attachment(pipe, family, models, modules, runtime)
    attachment.take_over(list(present.values()))
    return attachment


def facts(pipe: Any, family: Family, models: list[tuple[str, torch.nn.Module]]) -> Model:
    """What a cache's profile may ask of these transformers."""
    first = models[0][1]
    reference, theirs = weakref.ref(first), weakref.ref(pipe)
    return Model(
        type(first).__name__,
        dict(first.config),
        len(models),
        time_changes=lambda signal, timesteps: signals.time_changes(reference(), signal, timesteps),
        pipeline=type(pipe).__name__,
        block_input=signals.knows_input(blocks_of(first, dict(family.attention_in(first)))[0]),
        takes_over=lambda timesteps: signals.takes_over(theirs(), timesteps),
        channels=family.channels,
    )
