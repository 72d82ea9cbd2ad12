"""Classifier-free guidance shared by two groups of ranks, each with one branch of every step.

Pipelines that call the transformer for one branch after the other: the group whose branch it is computes, the other
returns at once with an output that is filled when it is read (`awaited`), which is after the second call. Pipelines
that give both branches in one batch: each group computes its half of the samples, and both gather the whole.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from dittools.branches import Branches, Elsewhere
from dittools.pipelines.call_interceptor import CallInterceptor
from dittools.pipelines.family import Family
from dittools.pipelines.parallel.awaited import awaited
from dittools.runtime import Runtime

if TYPE_CHECKING:
    from dittools.pipelines.root_hook import RootHook

_SHARED: weakref.WeakKeyDictionary[torch.nn.Module, Branches] = weakref.WeakKeyDictionary()
IN_ONE_BATCH = "one batch"
"""Of a family, that both branches come in one call."""


def share(models: list[torch.nn.Module], branches: Branches) -> None:
    """Have the transformers of one pipeline make branches as told; an acceleration sees it when it goes on them."""
    for model in models:
        _SHARED[model] = branches


def shared(model: torch.nn.Module) -> bool:
    """Whether groups of ranks share the guidance of this transformer."""
    return model in _SHARED


def branches_of(model: torch.nn.Module, family: Family) -> Branches | None:
    """Who makes which branch in a forward of this transformer; None where nobody shares them."""
    branches = _SHARED.get(model)
    if branches is None or torch.is_grad_enabled():
        return None
    branches.halves = family.guidance_passes == IN_ONE_BATCH
    return branches


class Guided:
    """The calls of one transformer, made by whoever has their branch.

    Args:
        family: how its arguments are named.
        hook: tells the runtime of a call.
        runtime: told of how it ends.
    """

    def __init__(self, family: Family, hook: RootHook, runtime: Runtime):
        self._family, self._hook, self._runtime = family, hook, runtime
        self._root: CallInterceptor | None = None
        self._forms: dict[Hashable, tuple[list[Any], Any, dict[int, tuple]]] = {}  # of outputs, by those of calls

    def install(self, model: torch.nn.Module, undo: ExitStack) -> None:
        """Stand in front of the transformer's calls, where they are shared; ``undo`` takes what ends that."""
        if shared(model):
            self._root = CallInterceptor(model, self._call)
            self._root.ensure()
            undo.callback(self._remove)

    def ensure(self) -> None:
        """Take the place again that `Module.compile` may have taken."""
        if self._root is not None:
            self._root.ensure()

    def _remove(self) -> None:
        self._root.remove()
        self._root = None

    def _call(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        hook = self._hook
        if hook.rerunning:
            return inner(*args, **kwargs)
        self.ensure()
        named = hook.named(args, kwargs)
        hook.begin(named)
        hook.announced = True
        try:
            return self.compute(inner, args, kwargs, named)[0]
        except BaseException:
            self._runtime.fail()
            raise
        finally:
            hook.announced = False

    def compute(
        self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any], named: dict[str, Any]
    ) -> tuple[Any, Elsewhere | None]:
        """The output of a call that is not reused, and where it comes from when it is made elsewhere.

        Args:
            inner: runs the transformer on ``args`` and ``kwargs``, which ``named`` has by their names.
        """
        branches = self._hook.branches
        if branches is None:
            return inner(*args, **kwargs), None
        if branches.here:
            try:
                output = self._half(branches, inner, args, kwargs) if branches.halves else inner(*args, **kwargs)
            except Exception as error:
                branches.fail(error)
                raise
            if not branches.halves:
                self._forms[_form(named)] = _parts(output)
            branches.end(output)
            return output, None
        elsewhere = branches.elsewhere
        self._runtime.end_elsewhere()
        known = self._forms.get(_form(named))
        if known is None:
            output = elsewhere.wait(read=False)
            self._forms[_form(named)] = _parts(output)
            return output, elsewhere
        shell, spec, tensors = known
        leaves, buffers = list(shell), []
        for place, (shape, dtype, device) in tensors.items():
            buffers.append(torch.empty(shape, dtype=dtype, device=device))
            leaves[place] = awaited(buffers[-1], elsewhere)
        elsewhere.then(lambda found: _fill(buffers, found))
        return tree_unflatten(leaves, spec), elsewhere

    def _half(self, branches: Branches, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        """The output of a whole batch, of which each group makes half."""
        pair = branches.pair
        given = self._hook.named(args, kwargs).get(self._family.latents)
        batch = len(given) if isinstance(given, torch.Tensor) else 0
        if batch % pair.size or not batch:
            what = f"{batch} samples" if batch else "a list of pictures"
            raise RuntimeError(
                f"{self._family.name} gives both branches of guidance in one batch, which two groups of ranks share: "
                f"this call has {what}, so draw with guidance, or without cfg"
            )

        def cut(x: Any) -> Any:
            whole = isinstance(x, torch.Tensor) and x.ndim > 0 and len(x) == batch
            return x.chunk(pair.size)[pair.rank] if whole else x

        args, kwargs = tree_map(cut, (args, kwargs))
        output = inner(*args, **kwargs)

        def whole(x: Any) -> Any:
            if not isinstance(x, torch.Tensor):
                return x
            self._runtime.note_sent(x.nbytes)
            return torch.cat(pair.gather(x.detach()))

        return tree_map(whole, output)


def _form(named: dict[str, Any]) -> Hashable:
    """What calls have in common whose outputs do: shapes, and plain settings."""
    plain = (bool, int, float, str, type(None))
    leaves = [(name, tree_flatten(value)[0]) for name, value in sorted(named.items())]
    return tuple(
        (name, *((tuple(x.shape), x.dtype) if isinstance(x, torch.Tensor) else x if isinstance(x, plain) else ...
                 for x in found))
        for name, found in leaves
    )  # fmt: skip


def _parts(output: Any) -> tuple[list[Any], Any, dict[int, tuple]]:
    """An output without its tensors, its form, and what is known of them by their places."""
    leaves, spec = tree_flatten(output)
    tensors = {at: (x.shape, x.dtype, x.device) for at, x in enumerate(leaves) if isinstance(x, torch.Tensor)}
    return [None if at in tensors else x for at, x in enumerate(leaves)], spec, tensors


def _fill(buffers: list[torch.Tensor], output: Any) -> None:
    found = [x for x in tree_flatten(output)[0] if isinstance(x, torch.Tensor)]
    for buffer, x in zip(buffers, found, strict=True):
        if buffer.shape != x.shape:
            raise RuntimeError(f"an output of shape {list(buffer.shape)} was awaited, and {list(x.shape)} came")
        buffer.copy_(x)
