"""diffusers' context parallelism put onto transformers, by a plan of ours where there is one."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch

from dittools.pipelines.backend import open_slots
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import family_of, transformers_of
from dittools.pipelines.family import matches
from dittools.pipelines.parallel.plans import PLANS, WHOLE, check_degrees, check_variant


def enable_parallelism(pipe: Any, config: Any) -> None:
    """Share every forward of a pipeline's transformers among ranks, before or after `dittools.accelerate`.

    It is `transformer.enable_parallelism(config=config)` of diffusers, with a plan of dittools where diffusers has none
    for the model or one that does not do. Some plans need dittools' attention: a pipeline that is not accelerated then
    refuses to draw; ``method="dense"`` is dense attention.

    Args:
        pipe: a diffusers pipeline of a known family.
        config: diffusers' `ContextParallelConfig`.

    Raises:
        ValueError: one line, when this model cannot be split.
    """
    models = [model for _, model in transformers_of(pipe, family_of(pipe))]
    for model in models:
        check_variant(type(model).__name__, model.config)
    for model in models:
        enable(model, copy.copy(config))


def enable(model: torch.nn.Module, config: Any) -> None:
    """`enable_parallelism` of one transformer.

    Args:
        model: diffusers' own class.
        config: diffusers' `ContextParallelConfig` of this transformer alone.
    """
    name = type(model).__name__
    check_variant(name, model.config)
    check_degrees(name, config.ulysses_degree, config.ring_degree)
    split = PLANS.get(name)
    if split is not None and split.uneven:
        config.ulysses_anything, config.ring_anything = config.ulysses_degree > 1, config.ring_degree > 1
    with _counted_devices():
        model.enable_parallelism(config=config, cp_plan=None if split is None else split.plan(model))
    if split is None:
        return
    _leave_whole(model, split.whole)
    if split.ours:
        model.register_forward_pre_hook(_needs_ours)


def _leave_whole(model: torch.nn.Module, patterns: tuple[str, ...]) -> None:
    """Take the config off the processors of modules that see all they need, also where they share one with others."""
    attention = {path: module for path, module in model.named_modules() if hasattr(module, "processor")}
    whole = {path for path in attention if any(matches(path, pattern) for pattern in patterns)}
    elsewhere = {id(module.processor) for path, module in attention.items() if path not in whole}
    for path in whole:
        module = attention[path]
        if id(module.processor) in elsewhere:
            module.set_processor(copy.copy(module.processor))
        module.processor._parallel_config = None
        setattr(module, WHOLE, True)


def _needs_ours(model: torch.nn.Module, args: tuple) -> None:
    """Before a forward that only dittools' attention makes right."""
    name = type(model).__name__
    if not any(ref() is model for slot in open_slots() for ref in slot.models.values()):
        raise BadInput(
            f"{name} is split among GPUs by a plan of dittools, under which diffusers' own attention is wrong: "
            'dittools.accelerate(pipe) first, with method="dense" where it should be dense'
        )
    if torch.is_grad_enabled():
        raise BadInput(
            f"{name} is split among GPUs by a plan of dittools, which has no gradients: call it under torch.no_grad()"
        )


@contextlib.contextmanager
def _counted_devices() -> Iterator[None]:
    """diffusers divides a rank by the number of accelerators, also where there is none: then it counts one CPU."""
    known = getattr(torch, "accelerator", None)
    if known is None or known.device_count():
        yield
        return
    before, known.device_count = known.device_count, lambda: 1
    try:
        yield
    finally:
        known.device_count = before
