"""What is read at a transformer's forward: token grid, timestep, guidance branch; and the forward run again.

PyTorch's own forward hooks surround whatever replaced `forward` before or after them (offloading, layerwise
casting, diffusers' caches), and go away without a trace. The branch comes from the pipeline's
`cache_context`, whose form differs between diffusers versions: it is read where the pipeline opens it.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

from dittools.branches import Branches
from dittools.call_info import CallInfo, Reusable, Timing
from dittools.pipelines import signals
from dittools.pipelines.caller import Loop, find_loop
from dittools.pipelines.copies import Listening, Unshared
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import Family
from dittools.pipelines.layers import Layers
from dittools.pipelines.parallel.cfg import Guided, branches_of
from dittools.pipelines.parallel.ulysses import check_shares, ranks_of
from dittools.pipelines.step_reuse import StepReuse, picture_in
from dittools.run import Run
from dittools.runtime import Runtime
from dittools.timesteps import Reading, read
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
        pipe: a weak reference to the pipeline, whose scheduler is asked where the caller has none.
        part: which transformer of the pipeline.

    Attributes:
        announced: whether `StepReuse` has told the runtime of the present call before it reached the module.
        rerunning: whether the present call only runs once more.
        layout: where the picture is in the latest call.
        layers: the seats of its self-attention, while it is installed.
        branches: who makes which guidance branch, in the present call; None where nobody shares them.
        guided: makes calls with them.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        family: Family,
        runtime: Runtime,
        pipe: Callable[[], Any],
        part: int = 0,
    ):
        self._family, self._config = family, model.config
        self._runtime = runtime
        self._pipe = pipe
        self._part, self._model = part, weakref.ref(model)
        self._context = Context()
        self.announced = self.rerunning = False
        self.reuse: StepReuse | None = None
        self.layout: Layout | None = None
        self.layers: Layers | None = None
        self.branches: Branches | None = None
        self.guided = Guided(family, self, runtime)
        self._parameters = [name for name in inspect.signature(type(model).forward).parameters if name != "self"]

    def install(self, model: torch.nn.Module, undo: ExitStack) -> None:
        """Hook the model; ``undo`` takes what unhooks it."""
        before = model.register_forward_pre_hook(Unshared(self._before), with_kwargs=True)
        undo.callback(before.remove)
        after = model.register_forward_hook(Unshared(self._after), with_kwargs=True)
        undo.callback(after.remove)
        if self.reuse is None:
            self.guided.install(model, undo)
        if hasattr(model, "cache_context"):
            undo.callback(Listening(model, "cache_context", self._in_context).remove)

    def _before(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self.rerunning:
            return
        self.layers.follow()
        if self.announced:
            return
        # Something took their place: this call is computed, the next one is asked about.
        (self.guided if self.reuse is None else self.reuse).ensure()
        self.begin(self.named(args, kwargs), "the call came another way")

    def begin(
        self,
        named: dict[str, Any],
        why_compute: str | Callable[[Run], str | None] | None = None,
        latents: Sequence[torch.Tensor] | None = None,
        form: Hashable = None,
    ) -> bool | None:
        """Tell the runtime of a forward with these arguments, by their names; its answer as `Runtime.begin_call`.

        latents, form: as `StepCache.begin`, where a cache is on.
        """
        family, argument, given = self._family, named.get, named.get(self._family.latents)
        given = given[0] if isinstance(given, list) else given
        grid, why_no_grid = None, None
        try:
            self.layout = family.layout(self._config, argument)
            grid = family.token_grid(self.layout, argument)
        except BadInput as error:
            self.layout, why_no_grid = None, f"the token grid cannot be read: {error}"
        if self.layout is not None:
            check_shares(self._model(), self.layout, grid.text)
        self.branches = branches_of(self._model(), family)
        timestep = argument(family.timestep)
        loop = find_loop(self._model(), timestep, self._pipe())
        timing = _timing(loop, self._context, self._reader(lambda: family.timestep_of(argument), loop))
        reusable = None
        if self.reuse is not None:
            tokens = picture_in(self.layout, given.shape[1]) if given.ndim == 3 else None
            latents = [given] if latents is None else latents
            reusable = Reusable(latents, _noise(loop, timing.timesteps), why_compute, form, tokens)
        info = CallInfo(
            timing,
            grid,
            given.device,
            given.dtype,
            self._part,
            self.layout,
            why_no_grid,
            reusable,
            boundary=signals.boundary(loop.owner, loop.scheduler),
            life=loop.life,
            source=None if loop.scheduler is None else id(loop.scheduler),
            ranks=ranks_of(self._model(), given.device),
            branches=self.branches,
        )
        return self._runtime.begin_call(info)

    def named(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The arguments of a forward by their names."""
        return dict(zip(self._parameters, args, strict=False)) | kwargs

    def _after(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if self.rerunning:
            return output
        self.layers.count_astray()
        while self._runtime.end_call():
            self.rerunning = True
            try:
                output = model(*args, **kwargs)
            finally:
                self.rerunning = False
        return output

    def _reader(self, given: Callable[[], Any], loop: Loop) -> Callable[[], Reading]:
        """What reads the timestep of this call in the schedule's units, at most once."""

        def reading() -> Reading:
            timestep = getattr(loop.owner, "_current_timestep", None) if self._family.clock == "pipeline" else None
            timestep = given() if timestep is None else timestep
            known = isinstance(timestep, (torch.Tensor, int, float))
            return read(timestep if known else 0.0, self._family.scheduled)

        return functools.cache(reading)

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


def _timing(loop: Loop, context: Context, timestep: Callable[[], Reading]) -> Timing:
    """When a call is, as far as that is known without reading its timestep."""
    told = functools.partial(Timing, timestep, branch=context.branch)
    if loop.step is not None:
        return told(loop.schedules[0], step_index=loop.step, steps=loop.steps, first=loop.first)
    if context.step_index is not None:
        least = context.steps or context.step_index + 1
        known = next((one for one in loop.schedules if len(one) >= least), None)
        # The pipeline counts from where it enters its schedule.
        late = len(known) - context.steps if known is not None and context.steps else 0
        steps = None if context.steps is None else context.steps + late
        return told(known, step_index=context.step_index + late, steps=steps, first=late)
    if len(loop.schedules) < 2:
        return told(loop.schedules[0] if loop.schedules else None)
    return told(next((one for one in loop.schedules if timestep().steps_of(one)), loop.schedules[0]))


def _noise(loop: Loop, timesteps: torch.Tensor | None) -> Callable[[int, int], float | None] | None:
    """Gives the share of noise in a step; None where the schedule is no scheduler's."""
    scheduler = loop.scheduler
    if scheduler is None or timesteps is None or timesteps.ndim > 1 or len(timesteps) != len(scheduler.timesteps):
        return None
    return lambda step, _: signals.noise_share(scheduler, step, len(timesteps))
