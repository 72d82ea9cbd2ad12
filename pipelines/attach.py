"""Enter a pipeline, and leave it as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from dittools.config import Config
from dittools.pipelines.backend import Socket, SparseProcessor
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import family_of, transformers_of
from dittools.pipelines.root_hook import RootHook
from dittools.profile import Model, fingerprint
from dittools.runtime import Layer, Runtime


def attach(pipe: Any, config: Config) -> tuple[Runtime, Callable[[], None]]:
    """Route the self-attention of a pipeline through a new `Runtime`.

    An acceleration that is already on one of its transformers is undone first.

    Returns:
        The runtime, and a function that undoes everything; it may be called more than once.

    Raises:
        BadInput: when the pipeline is of no known family, or its self-attention cannot be reached.
    """
    family = family_of(pipe)
    models = transformers_of(pipe, family)
    modules = []
    for component, model in models:
        inside = [(path, module) for path, module in model.named_modules() if family.is_self_attention(path)]
        if not inside:
            raise BadInput(f"{component} has no module {family.self_attention}: is it a {family.name} model?")
        modules += [(Layer(f"{component}.{path}", depth), module) for depth, (path, module) in enumerate(inside)]
    for _, module in modules:
        if isinstance(module.processor, SparseProcessor):
            module.processor.socket.detach()
    for layer, module in modules:
        if not hasattr(module.processor, "_attention_backend"):
            found = type(module.processor).__name__
            raise BadInput(f"{layer.name} runs {found}, which does not use diffusers' attention dispatcher")

    runtime = Runtime(config, [layer for layer, _ in modules], _model_of(pipe, models, modules))
    with ExitStack() as undo:
        socket = Socket(runtime)
        undo.callback(socket.close)
        for _, module in modules:
            processor = socket.wrap(module.processor)
            module.set_processor(processor)
            undo.callback(_put_back, module, processor)
        timesteps = _schedule_of(pipe)
        for _, model in models:
            RootHook(model, family, runtime, timesteps).install(model, undo)
        socket.detach = undo.pop_all().close
    return runtime, socket.detach


def _model_of(pipe: Any, models: list[tuple[str, Any]], modules: list[tuple[Layer, Any]]) -> Model:
    """What a profile of this pipeline has to fit."""
    schedule = getattr(getattr(pipe, "scheduler", None), "config", {})
    shift = schedule.get("flow_shift", schedule.get("shift"))
    return Model(
        transformer=type(models[0][1]).__name__,
        fingerprint=fingerprint([dict(model.config) for _, model in models]),
        layers=len(modules),
        heads=getattr(modules[0][1], "heads", 0),
        shift=None if shift is None else float(shift),
    )


def _put_back(module: torch.nn.Module, processor: SparseProcessor) -> None:
    """Restore a module's processor, unless someone has given it another one since."""
    if module.processor is processor:
        module.set_processor(processor.original)


def _schedule_of(pipe: Any) -> Callable[[], torch.Tensor | None]:
    """Reads the schedule of the pipeline's present scheduler, without keeping the pipeline alive."""
    reference = weakref.ref(pipe)

    def timesteps() -> torch.Tensor | None:
        return getattr(getattr(reference(), "scheduler", None), "timesteps", None)

    return timesteps
