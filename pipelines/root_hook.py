"""What is read at a transformer's forward: token grid, timestep, guidance branch; and the forward run again.

PyTorch's own forward hooks surround whatever replaced `forward` before or after them (offloading, layerwise
casting, diffusers' caches), and go away without a trace. The branch comes from the pipeline's
`cache_context`, whose form differs between diffusers versions: it is read where the pipeline opens it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from dittools.pipelines.copies import Listening, Unshared
from dittools.pipelines.families import Family
from dittools.pipelines.layers import Layers
from dittools.pipelines.step_reuse import StepReuse, picture_in
from dittools.runtime import Runtime
from dittools.tokens import Layout


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
        part: which transformer of the pipeline.
        noise: (step, steps) -> share of noise in the latents; None where nobody asks.

    Attributes:
        told: whether the present call was told of before it reached the module, by `StepReuse`.
        again: whether it only runs once more.
        layout: where the picture is in the latest call.
        layers: the seats of its self-attention, while it is installed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: Family,
        runtime: Runtime,
        pipe: Callable[[], Any],
        part: int = 0,
        noise: Callable[[int, int], float | None] | None = None,
    ):
        self._family, self._config = family, model.config
        self._runtime = runtime
        self._pipe = pipe
        self._part, self._noise = part, noise
        self._context = Context()
        self.told = self.again = False
        self.reuse: StepReuse | None = None
        self.layout: Layout | None = None
        self.layers: Layers | None = None
        parameters = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]
        self._positions = {name: i for i, name in enumerate(parameters)}

    def install(self, model: torch.nn.Module, undo: ExitStack) -> None:
        """Hook the model; ``undo`` takes what unhooks it."""
        before = model.register_forward_pre_hook(Unshared(self._before), with_kwargs=True)
        undo.callback(before.remove)
        after = model.register_forward_hook(Unshared(self._after), with_kwargs=True)
        undo.callback(after.remove)
        if hasattr(model, "cache_context"):
            undo.callback(Listening(model, "cache_context", self._in_context).remove)

    def _before(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.again:
            return
        self.layers.follow()
        if self.told:
            return
        if self.reuse is not None:
            self.reuse.ensure()  # something took its place: this call is computed, the next one is asked about
        self.begin(args, kwargs, "the call came another way")

    def begin(
        self,
        args: tuple,
        kwargs: dict[str, Any],
        why_compute: str | None = None,
        latents: Sequence[torch.Tensor] | None = None,
        form: Hashable = None,
    ) -> bool | None:
        """Tell the runtime of a forward with these arguments; its answer as `Runtime.begin_call`.

        latents, form: as `Reuse.begin`, where a cache is on.
        """

        def argument(name: str) -> Any:
            return self._argument(name, args, kwargs)

        family, given = self._family, self.latents(args, kwargs)
        layout = self.layout = family.layout(self._config, argument)
        return self._runtime.begin_call(
            grid=family.token_grid(layout, argument),
            layout=layout,
            timestep=self._timestep(argument),
            timesteps=getattr(getattr(self._pipe(), "scheduler", None), "timesteps", None),
            device=given.device,
            dtype=given.dtype,
            branch=self._context.branch,
            step_index=self._context.step_index,
            steps=self._context.steps,
            part=self._part,
            latents=None if self.reuse is None else [given] if latents is None else latents,
            noise=self._noise,
            why_compute=why_compute,
            form=form,
            tokens=picture_in(layout, given.shape[1]) if given.ndim == 3 else None,
        )

    def latents(self, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        """What the transformer is given to denoise; the first of them where it is given a list."""
        latents = self._argument(self._family.latents, args, kwargs)
        return latents[0] if isinstance(latents, list) else latents

    def optional(self, name: str, args: tuple, kwargs: dict[str, Any], default: Any) -> Any:
        """An argument that may not be given."""
        if name in kwargs:
            return kwargs[name]
        place = self._positions.get(name, len(args))
        return args[place] if place < len(args) else default

    def named(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a forward by their names."""
        return dict(zip(self._positions, args, strict=False)) | kwargs

    def _after(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.again:
            return output
        self.layers.count_astray()
        while self._runtime.end_call():
            self.again = True
            try:
                output = model(*args, **kwargs)
            finally:
                self.again = False
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
    def _in_context(self, theirs: Callable[..., Any], name: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """The model's ``cache_context``, listened to."""
        before, self._context = self._context, _context(name, kwargs)
        try:
            with theirs(name, *args, **kwargs) as value:
                yield value
        finally:
            self._context = before


def _context(name: Any, details: dict[str, Any]) -> Context:
    index, steps = details.get("step_index"), details.get("num_inference_steps")
    # Some guiders pass an object with the name in it.
    branch = name if isinstance(name, str) else getattr(name, "name", str(name))
    return Context(branch, None if index is None else int(index), None if steps is None else int(steps))
