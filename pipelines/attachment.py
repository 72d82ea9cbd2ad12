"""One acceleration on a pipeline: put on, taken off, and put on again where a later one had its place for a while."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch

from dittools.pipelines.backend import Socket
from dittools.pipelines.family import Family
from dittools.pipelines.layers import Layers
from dittools.pipelines.root_hook import RootHook
from dittools.pipelines.seats import can_enter, seat_of
from dittools.pipelines.step_reuse import StepReuse
from dittools.runtime import Layer, Runtime

Models = Sequence[tuple[str, torch.nn.Module]]
Modules = Sequence[tuple[Layer, torch.nn.Module]]


class Attachment:
    """The self-attention of a pipeline, led to a runtime. It is not on the pipeline before `take_over`.

    As a context manager it is taken off at the end of the block, and what it replaced comes back.

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
        self._models, self._modules = models, modules
        self._hooks = []
        for part, (_, model) in enumerate(models):
            hook = RootHook(model, family, runtime, weakref.ref(pipe), part)
            if runtime.cache is not None:
                hook.reuse = StepReuse(model, family, hook, runtime)
            self._hooks.append(hook)
        self._undo: ExitStack | None = None  # None while it is not on the pipeline
        self._over = False  # taken off for good
        self._in_block = False
        self._before: list[Attachment] = []  # what it took the place of

    @property
    def replaced(self) -> bool:
        """Whether another has its place."""
        return self._undo is None and not self._over

    def take_over(self, present: Sequence[Attachment]) -> None:
        """Go onto the pipeline in the place of those that are there. Where that fails, they stay."""
        for one in present:
            one._leave()
        try:
            self._enter()
        except BaseException:
            for one in present:
                one._enter()
            raise
        for one in present:
            if not one._in_block:
                one._before = list(_in_block(one._before))  # or each call would keep all before it
        self._before = list(present)

    def detach(self) -> None:
        """Take it off. Of what it replaced, that comes back whose ``with`` block is still open.

        Again, or while another has its place: nothing changes on the pipeline, and it does not come back.
        """
        self._end(_in_block(self._before))

    def __enter__(self) -> Attachment:
        self._in_block = True
        return self

    def __exit__(self, *error: object) -> None:
        self._end(_not_over(self._before))

    def _end(self, back: Iterable[Attachment]) -> None:
        back, there = list(back), self._undo is not None
        self._leave()
        self._over, self._in_block = True, False
        self._models, self._modules, self._hooks = [], [], []
        self._before = [] if there else back  # for the one that has its place
        if there:
            for one in back:
                if one._may_enter():
                    one._enter()

    def _may_enter(self) -> bool:
        """Whether its modules are as it left them: another pipeline with the same transformer may have taken some."""
        return all(present_on(module) is None and can_enter(module.processor) for _, module in self._modules)

    def _leave(self) -> None:
        undo, self._undo = self._undo, None
        if undo is not None:
            undo.close()

    def _enter(self) -> None:
        with ExitStack() as undo:
            undo.callback(self.runtime.close)
            socket = Socket(self.runtime)
            undo.callback(socket.close)
            for (component, model), hook in zip(self._models, self._hooks, strict=True):
                mine = {
                    layer: module
                    for layer, (place, module) in enumerate(self._modules)
                    if place.name.startswith(f"{component}.")
                }
                hook.layers = undo.enter_context(Layers(mine, socket))
                hook.install(model, undo)
                if hook.reuse is not None:
                    hook.reuse.install(undo)
            socket.attachment = self
            self._undo = undo.pop_all()


def present_on(module: torch.nn.Module) -> Attachment | None:
    """The attachment that a self-attention module is led to."""
    seat = seat_of(module)
    return None if seat is None else seat.socket.attachment


def _not_over(ones: Iterable[Attachment]) -> Iterator[Attachment]:
    """Of these, which may come back; in the place of one that may not, what that had replaced in an open block."""
    for one in ones:
        if one._over:
            yield from _in_block(one._before)
        else:
            yield one


def _in_block(ones: Iterable[Attachment]) -> Iterator[Attachment]:
    """Of these, and of what they had replaced, the latest whose ``with`` block is open."""
    for one in ones:
        if one._in_block:
            yield one
        else:
            yield from _in_block(one._before)
