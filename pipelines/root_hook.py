"""What is read at a transformer's forward: token grid, timestep, guidance branch; and the forward run again.

PyTorch's own forward hooks surround whatever replaced `forward` before or after them (offloading, layerwise
casting, diffusers' caches), and go away without a trace. The branch comes from the pipeline's
`cache_context`, whose form differs between diffusers versions: it is read where the pipeline opens it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from dittools.pipelines.families import Family
from dittools.runtime import Runtime


class Context(NamedTuple):
    """What the pipeline says of the call it makes: branch and, in newer diffusers, step index and count."""

    branch: str | None = None
    step_index: int | None = None
    steps: int | None = None


class RootHook:
    """Tells the runtime of every forward of one transformer.

    Args:
        model: the transformer.
        family: how its arguments are named.
        runtime: told of each call.
        pipe: a weak reference to the pipeline, whose scheduler has the schedule of the run under way.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: Family,
        runtime: Runtime,
        pipe: Callable[[], Any],
    ):
        self._family = family
        self._runtime = runtime
        self._pipe = pipe
        self._context = Context()
        self._again = False
        parameters = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]
        self._positions = {name: i for i, name in enumerate(parameters)}

    def install(self, model: torch.nn.Module, undo: ExitStack) -> None:
        """Hook the model; ``undo`` takes what unhooks it."""
        before = model.register_forward_pre_hook(self._before, with_kwargs=True)
        undo.callback(before.remove)
        after = model.register_forward_hook(self._after, with_kwargs=True)
        undo.callback(after.remove)
        if hasattr(model, "cache_context"):
            undo.enter_context(self._watch_context(model))

    @torch.compiler.disable
    def _before(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._again:
            return

        def argument(name: str) -> Any:
            return self._argument(name, args, kwargs)

        family = self._family
        layout = family.layout(model.config, argument)
        latents = argument(family.latents)
        latents = latents[0] if isinstance(latents, list) else latents
        self._runtime.begin_call(
            grid=family.token_grid(layout, argument),
            layout=layout,
            timestep=self._timestep(argument),
            timesteps=getattr(getattr(self._pipe(), "scheduler", None), "timesteps", None),
            device=latents.device,
            dtype=latents.dtype,
            branch=self._context.branch,
            step_index=self._context.step_index,
            steps=self._context.steps,
        )

    @torch.compiler.disable
    def _after(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self._again:
            return output
        while self._runtime.end_call():
            self._again = True
            try:
                output = model(*args, **kwargs)
            finally:
                self._again = False
        return output

    def _timestep(self, argument: Callable[[str], Any]) -> Any:
        """The scheduler's timestep of this call."""
        if self._family.clock == "pipeline":
            current = getattr(self._pipe(), "_current_timestep", None)
            if current is not None:
                return current
        return self._family.scheduled(argument(self._family.timestep))

    def _argument(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Any:
        if name in kwargs:
            return kwargs[name]
        place = self._positions.get(name, len(args))
        return args[place] if place < len(args) else None

    @contextmanager
    def _watch_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Listen to ``model.cache_context`` until the end of this context."""
        theirs = model.cache_context
        own = model.__dict__.get("cache_context")

        @contextmanager
        def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
            before, self._context = self._context, _context(name, kwargs)
            try:
                with theirs(name, *args, **kwargs) as value:
                    yield value
            finally:
                self._context = before

        model.cache_context = cache_context
        try:
            yield
        finally:
            # Where someone wrapped it after us, ours has to stay inside theirs; it only passes things on.
            if model.__dict__.get("cache_context") is cache_context:
                if own is None:
                    del model.cache_context
                else:
                    model.cache_context = own


def _context(name: Any, details: dict[str, Any]) -> Context:
    index, steps = details.get("step_index"), details.get("num_inference_steps")
    # Some guiders pass an object with the name in it.
    branch = name if isinstance(name, str) else getattr(name, "name", str(name))
    return Context(branch, None if index is None else int(index), None if steps is None else int(steps))
