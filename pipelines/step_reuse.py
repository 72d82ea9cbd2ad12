"""Reuses whole calls of one transformer: asks the run's cache before each, and keeps what computed ones give.

diffusers' own caches hang a hook on every block, and need each block's class in a table, a context opened by the
pipeline, and the hooks removed in the reverse order. Here nothing is on the blocks but for a cache that watches the
first one, or carries over what all of them add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from dittools.pipelines import signals
from dittools.pipelines.around import Around
from dittools.pipelines.errors import BadInput
from dittools.runtime import Runtime

if TYPE_CHECKING:
    from dittools.pipelines.root_hook import RootHook


class _Reused(BaseException):
    """Leaves a forward whose output is reused; no `except Exception` on the way may stop it."""


class StepReuse:
    """Answers the calls of one transformer.

    Args:
        model: the transformer.
        paths: of its self-attention modules; they say which modules are its blocks.
        hook: reads the arguments of a call, and tells the runtime of it.
        runtime: whose run has the cache.
    """

    def __init__(self, model: torch.nn.Module, paths: Sequence[str], hook: RootHook, runtime: Runtime):
        if getattr(model, "is_cache_enabled", False):
            raise BadInput(
                "diffusers' own cache is on, and two would each reuse what the other did: disable_cache() first"
            )
        self._model, self._hook, self._runtime, self._layers = model, hook, runtime, len(paths)
        self._root = Around(model, self._call)
        self._asks = self._bypass = False
        self._forms: dict[bool, Callable[[list[torch.Tensor]], Any]] = {}
        self._into: torch.Tensor | None = None  # of the first block
        self._added: torch.Tensor | None = None  # by all blocks
        self._stack = getattr(runtime.cache, "reuse", "") == "stack"
        blocks = _blocks(model, paths)
        if self._stack:
            _check_one_list(blocks, paths)
        # A profile may make of any cache that has one a cache that watches the first block.
        watches = runtime.cache.watches.startswith("block") or hasattr(runtime.cache, "profile")
        self._first_block = blocks[0]
        self._arounds = [Around(blocks[0], self._first)] if watches or self._stack else []
        if self._stack:
            self._arounds += [Around(block, self._middle) for block in blocks[1:-1]] + [Around(blocks[-1], self._final)]

    def install(self, undo: ExitStack) -> None:
        """Stand in front of the transformer's calls; ``undo`` takes what ends that."""
        for around in (self._root, *self._arounds):
            around.ensure()
            undo.callback(around.remove)

    def ensure(self) -> None:
        """Take the place again that `Module.compile` may have taken."""
        for around in (self._root, *self._arounds):
            around.ensure()

    def _call(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        hook, runtime = self._hook, self._runtime
        if hook.again:
            return inner(*args, **kwargs)
        self.ensure()
        whole = bool(hook.optional("return_dict", args, kwargs, True))
        why = None if whole in self._forms or runtime.run is None else "an output of this form was not seen yet"
        if torch.is_grad_enabled():
            why = "gradients are enabled"
        latents = hook.latents(args, kwargs)
        verdict = hook.begin(args, kwargs, why)
        self._asks = verdict is None
        hook.told = True
        try:
            if verdict is False:
                return self._reused(inner, args, kwargs, latents, whole)
            output = inner(*args, **kwargs)
        except _Reused:
            hook.told = False
            return self._reused(inner, args, kwargs, latents, whole)
        finally:
            hook.told = self._asks = False
        tensors, self._forms[whole] = taken_apart(output)
        if not torch.is_grad_enabled():
            runtime.run.reuse.carry(latents, [self._added] if self._stack else tensors)
        self._into = self._added = None
        return output

    def _reused(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any], latents: Any, whole: bool) -> Any:
        found = self._runtime.run.reuse.stand_in(latents)
        if not self._stack:
            output = self._forms[whole](found)
        else:
            self._added, self._bypass, self._hook.again = found[0], True, True
            try:
                output = inner(*args, **kwargs)
            finally:
                self._added, self._bypass, self._hook.again = None, False, False
        self._runtime.end_reused(self._layers)
        return output

    # On blocks, where a cache watches the first one or carries over what all of them add

    def _first(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        hidden = signals.first_tensor(args, kwargs)
        if self._bypass:
            return hidden + self._added
        self._into = hidden if self._stack else None
        asks, self._asks = self._asks, False
        reuse = self._runtime.run.reuse if asks else None
        if asks and getattr(self._model, "_parallel_config", None) is not None:
            # Each rank has its own tokens here, and ranks that decide differently wait for each other for ever.
            reuse.watch(None)
            asks = False
        if asks and reuse.watches == "block_input":
            if not reuse.watch(signals.modulated_input(self._first_block, args, kwargs)):
                raise _Reused
            asks = False
        output = inner(*args, **kwargs)
        if self._stack and not isinstance(output, torch.Tensor):
            raise BadInput("reuse=stack works on blocks that pass one tensor, and this model's pass more: use output")
        if asks:
            given = output if isinstance(output, (tuple, list)) else (output,)
            same = next((t for t in given if isinstance(t, torch.Tensor) and t.shape == hidden.shape), None)
            if not reuse.watch(None if same is None else same - hidden):
                raise _Reused
        return output

    def _middle(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        return signals.first_tensor(args, kwargs) if self._bypass else inner(*args, **kwargs)

    def _final(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._bypass:
            return signals.first_tensor(args, kwargs)
        output = inner(*args, **kwargs)
        if self._into is not None:
            self._added = output - self._into
        return output


def _blocks(model: torch.nn.Module, paths: Sequence[str]) -> list[torch.nn.Module]:
    """The block each self-attention is in, by its path up to the first number, each once."""
    found: dict[str, torch.nn.Module] = {}
    for path in paths:
        parts = path.split(".")
        end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        name = ".".join(parts[: end + 1])
        found.setdefault(name, model.get_submodule(name))
    return list(found.values())


def _check_one_list(blocks: Sequence[torch.nn.Module], paths: Sequence[str]) -> None:
    if len(blocks) < 2:
        raise BadInput("reuse=stack needs a transformer of at least two blocks: use reuse=output")
    lists = {path.split(".")[0] for path in paths}
    if len(lists) > 1:
        raise BadInput(
            f"reuse=stack works on one list of blocks, and this model has {', '.join(sorted(lists))}: use output"
        )


def taken_apart(output: Any) -> tuple[list[torch.Tensor], Callable[[list[torch.Tensor]], Any]]:
    """The tensors of a transformer's output, and what makes such an output of others."""
    if isinstance(output, torch.Tensor):
        return [output], lambda tensors: tensors[0]
    if isinstance(output, dict):  # diffusers' output classes are
        kind, items = type(output), dict(output)
        names = [name for name, value in items.items() if isinstance(value, torch.Tensor)]
        rest = {name: value for name, value in items.items() if name not in names}
        return [items[name] for name in names], lambda tensors: kind(**rest, **dict(zip(names, tensors, strict=True)))
    places = [i for i, value in enumerate(output) if isinstance(value, torch.Tensor)]
    shell = [None if i in places else value for i, value in enumerate(output)]

    def again(tensors: list[torch.Tensor]) -> tuple:
        filled = list(shell)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        return tuple(filled)

    return [output[i] for i in places], again
