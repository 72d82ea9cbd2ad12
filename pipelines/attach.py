"""Enter a pipeline, and leave it as it was."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dittools.caches.base import Model
from dittools.config import Config
from dittools.pipelines import signals
from dittools.pipelines.backend import Socket, SparseProcessor, can_enter
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import family_of, transformers_of
from dittools.pipelines.root_hook import RootHook
from dittools.pipelines.step_reuse import StepReuse
from dittools.profile import Model as Identity
from dittools.profile import fingerprint
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
    if family.why_not is not None:
        raise BadInput(f"sparse attention cannot run in {family.name}: {family.why_not}")
    models = transformers_of(pipe, family)
    modules = []
    for component, model in models:
        inside = [(path, module) for path, module in model.named_modules() if family.is_self_attention(path)]
        if not inside:
            paths = " or ".join(family.self_attention)
            raise BadInput(f"{component} has no module {paths}: is it a {family.name} model?")
        modules += [(Layer(f"{component}.{path}", depth), module) for depth, (path, module) in enumerate(inside)]
    for _, module in modules:
        if isinstance(module.processor, SparseProcessor):
            module.processor.socket.detach()
    for layer, module in modules:
        if not can_enter(module.processor):
            found = type(module.processor).__name__
            raise BadInput(
                f"{layer.name} runs {found}, which neither uses diffusers' attention dispatcher nor calls "
                "PyTorch's attention itself: give the module its own processor back"
            )

    runtime = Runtime(config, [layer for layer, _ in modules], facts(models), _identity(pipe, models, modules))
    with ExitStack() as undo:
        undo.callback(runtime.close)
        socket = Socket(runtime)
        undo.callback(socket.close)
        for layer, (_, module) in enumerate(modules):
            _enter(module, socket, layer, undo)
        for part, (component, model) in enumerate(models):
            mine = [
                (layer, module)
                for layer, (place, module) in enumerate(modules)
                if place.name.startswith(f"{component}.")
            ]
            _stay_in(model, mine, socket, undo)
            hook = RootHook(model, family, runtime, weakref.ref(pipe), part, _noise_of(pipe))
            hook.install(model, undo)
            if runtime.cache is not None:
                inside = [path for path, _ in model.named_modules() if family.is_self_attention(path)]
                hook.reuse = StepReuse(model, inside, hook, runtime)
                hook.reuse.install(undo)
        socket.detach = undo.pop_all().close
    return runtime, socket.detach


def facts(models: list[tuple[str, torch.nn.Module]]) -> Model:
    """What a cache's profile may ask of these transformers."""
    first = models[0][1]
    reference = weakref.ref(first)

    def changes(signal: str, timesteps: Sequence[float]) -> list[float] | None:
        return signals.time_changes(reference(), signal, timesteps)

    return Model(type(first).__name__, dict(first.config), len(models), time_changes=changes)


def _noise_of(pipe: Any) -> Callable[[int, int], float | None]:
    """Reads the noise level of a step from the pipeline's present scheduler."""
    reference = weakref.ref(pipe)
    return lambda step, steps: signals.noise_share(getattr(reference(), "scheduler", None), step, steps)


def _enter(module: torch.nn.Module, socket: Socket, layer: int, undo: ExitStack) -> None:
    processor = socket.wrap(module.processor, layer)
    set_processor(module, processor)
    undo.callback(_put_back, module, processor)


def _stay_in(
    model: torch.nn.Module,
    modules: list[tuple[int, torch.nn.Module]],
    socket: Socket,
    undo: ExitStack,
) -> None:
    """Enter again, before a forward, where someone gave a module another processor: fusing projections does."""
    later = undo.enter_context(ExitStack())

    @torch.compiler.disable
    def enter_again(*_: object) -> None:
        for layer, module in modules:
            if not isinstance(module.processor, SparseProcessor) and can_enter(module.processor):
                _enter(module, socket, layer, later)

    undo.callback(model.register_forward_pre_hook(enter_again).remove)


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


def _put_back(module: torch.nn.Module, processor: SparseProcessor) -> None:
    """Restore a module's processor, unless someone has given it another one since."""
    if module.processor is processor:
        set_processor(module, processor.original)


def set_processor(module: torch.nn.Module, processor: object) -> None:
    """Give an attention module a processor; some classes have no method for it."""
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:
        module.processor = processor
