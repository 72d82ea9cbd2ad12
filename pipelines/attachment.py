"""One acceleration on a pipeline: put on, suspended while a later one has its place, and taken off for good."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from enum import Enum
from typing import Any

import torch

from dittools.pipelines.backend import BackendSlot
from dittools.pipelines.family import Family
from dittools.pipelines.layers import Layers
from dittools.pipelines.root_hook import RootHook
from dittools.pipelines.seats import can_enter, seat_of
from dittools.pipelines.step_reuse import StepReuse
from dittools.runtime import Layer, Runtime

Models = Sequence[tuple[str, torch.nn.Module]]
Modules = Sequence[tuple[Layer, torch.nn.Module]]


class State(Enum):
    """Where an attachment stands."""

    NEW = "made, and not on the pipeline yet"
    ATTACHED = "on the pipeline: it decides the calls"
    SUSPENDED = "a later one has its place, after which it may come back"
    RESTORED = "taken off for good"


class Attachment:
    """The self-attention of a pipeline, led to a runtime. It is not on the pipeline before `take_over`.

    As a context manager it is taken off at the end of the block, and what it replaced comes back.

    | from      | by                               | to        |
    |-----------|----------------------------------|-----------|
    | new       | `take_over`                      | attached  |
    | attached  | another's `take_over`            | suspended |
    | suspended | the end of the one in its place  | attached, where its block is open, or that one's block ended |
    | any       | `detach`, the end of its block   | restored  |

    Args:
        pipe: the pipeline.
        family: its record.
        models: its transformers with the names of their components.
        modules: their self-attention modules, in the order of the runtime's layers.
        runtime: what decides the calls.

    Raises:
        BadInput: when the runtime's cache cannot work on these transformers.
    """

    def __init__(self, pipe: Any, family: Family, models: Models, modules: Modules, runtime: Runtime):
        self.runtime = runtime
        self.state = State.NEW
        self._models, self._modules = models, modules
        self._hooks = []
        for part, (_, model) in enumerate(models):
            hook = RootHook(model, family, runtime, weakref.ref(pipe), part)
            if runtime.cache is not None:
                hook.reuse = StepReuse(model, family, hook, runtime)
            self._hooks.append(hook)
        self._undo = ExitStack()  # takes it off the pipeline
        self._in_block = False  # whether its ``with`` block is open
        self._suspended_by: Callable[[], Attachment | None] = lambda: None
        self._stack: list[Attachment] = []  # those that may come back, oldest first, and the one that is on

    @property
    def replaced(self) -> bool:
        """Whether another has its place."""
        return self.state is State.SUSPENDED

    def take_over(self, present: Sequence[Attachment]) -> None:
        """Go onto the pipeline in the place of those that are there. Where that fails, they stay."""
        for one in present:
            one._leave(State.SUSPENDED)
        try:
            self._enter()
        except BaseException:
            for one in present:
                one._enter()
            raise
        for one in present:
            one._suspended_by = weakref.ref(self)
        below = dict.fromkeys(one for other in present for one in other._stack)
        # Of the others that are suspended, none comes back whose block is not open: they would only be held.
        stack = [one for one in below if one in present or one._may_come_back()]
        stack.append(self)
        for one in stack:
            one._stack = stack

    def detach(self) -> None:
        """Take it off. Of what it replaced, that comes back whose ``with`` block is still open.

        Again, or while another has its place: nothing changes on the pipeline, and it does not come back.
        """
        self._end(block_ends=False)

    def enter_again(self) -> None:
        """See what has changed on its transformers. What its latest run holds for steps to come is let go."""
        if self.state is State.ATTACHED:
            self._leave(State.SUSPENDED)
            self._enter()

    def __enter__(self) -> Attachment:
        self._in_block = True
        return self

    def __exit__(self, *error: object) -> None:
        self._end(block_ends=True)

    def _end(self, block_ends: bool) -> None:
        was_on, self._in_block = self.state is State.ATTACHED, False
        self._leave(State.RESTORED)
        self._models, self._modules, self._hooks = [], [], []
        if self in self._stack:
            self._stack.remove(self)
        if not was_on:
            return
        for one in reversed(self._stack):  # the latest first: earlier ones find their modules taken
            mine = block_ends and one._suspended_by() is self
            if one.replaced and (mine or one._in_block) and one._finds_its_modules():
                one._enter()

    def _may_come_back(self) -> bool:
        """Whether a suspended one has an open block around it, or around the one that has its place."""
        suspender = self._suspended_by()
        return self._in_block or (suspender is not None and suspender._in_block)

    def _finds_its_modules(self) -> bool:
        """Whether its modules are as it left them: another pipeline with the same transformer may have taken some."""
        return all(present_on(module) is None and can_enter(module.processor) for _, module in self._modules)

    def _leave(self, state: State) -> None:
        self.state = state
        self._undo.close()

    def _enter(self) -> None:
        with ExitStack() as undo:
            undo.callback(self.runtime.close)
            slot = BackendSlot(self.runtime)
            undo.callback(slot.close)
            for (component, model), hook in zip(self._models, self._hooks, strict=True):
                mine = {
                    layer: module
                    for layer, (place, module) in enumerate(self._modules)
                    if place.name.startswith(f"{component}.")
                }
                hook.layers = undo.enter_context(Layers(mine, slot, model))
                hook.install(model, undo)
                if hook.reuse is not None:
                    hook.reuse.install(undo)
            slot.attachment = self
            self._undo, self.state = undo.pop_all(), State.ATTACHED


def present_on(module: torch.nn.Module) -> Attachment | None:
    """The attachment that a self-attention module is led to."""
    seat = seat_of(module)
    return None if seat is None else seat.slot.attachment
