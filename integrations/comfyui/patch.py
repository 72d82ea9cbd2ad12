"""What is put on a MODEL: a wrapper around its forward, one around a sampling run, and an attention override.

The three are ComfyUI's own ways in (`comfy.patcher_extension`, `transformer_options`), and belong to a clone of the
MODEL: the original has none of them, and what else is needed to know which layer calls (hooks on the blocks) is there
while the clone's forward runs and not after it.

    sampling run          Patch.sample     a new `dittools.runtime.Runtime`; let go of at the end, however it ends
      model's forward     Patch.forward    grid, step and branch are read -> begin_call; a reused step runs nothing
        block             hooks            which layer is next
          attention       Patch.attention  the first of a block -> Runtime.attend; any other as ComfyUI runs it
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from dittools import summary
from dittools.caches.state import Model
from dittools.call_info import CallInfo, Layer, Reusable, Timing
from dittools.config import Config
from dittools.pipelines.step_reuse import call_form, taken_apart
from dittools.runtime import Runtime
from dittools.tokens import Layout

from .calls import read_call
from .layouts import Known, blocks_in, known
from .steps import Steps

KEY = "dittools"
FORWARD, SAMPLE, OVERRIDE = "diffusion_model", "outer_sample", "optimized_attention_override"
OUTSIDE = "attention outside of the model's forward, or in one that is left as it is"
BRANCHES = {0: "cond", 1: "uncond"}


class Sampling:
    """One sampling run, or calls in a row without one.

    Args:
        patch: whose settings and model.
        model: ComfyUI's ``diffusion_model``.
        options: the ``transformer_options`` of its first forward.
        apart: whether each call of a step makes plans of its own: calls see other windows or areas of the picture.
    """

    def __init__(self, patch: Patch, model: torch.nn.Module, options: dict[str, Any], apart: bool):
        config = patch.config
        if apart or "context_window" in options:
            config = dataclasses.replace(config, share_branches=False)
        self.runtime = patch.new_runtime(model, config)
        self.schedule = options.get("sample_sigmas")
        self.steps: Steps | None = None
        self._timesteps: torch.Tensor | None = None
        if isinstance(self.schedule, torch.Tensor) and self.schedule.numel() > 1:
            self.steps = Steps(self.schedule.flatten().tolist(), patch.record.share)
            self._timesteps = torch.tensor(self.steps.timesteps())
        self.forms: dict[Any, Callable[[list[torch.Tensor]], Any]] = {}
        self._names: dict[tuple[int, Any], str] = {}

    def timing(self, options: dict[str, Any], timestep: Any) -> Timing:
        """When a forward is."""
        branch, sigma = self._branch(options), options.get("sigmas")
        if self.steps is None or sigma is None:
            given = timestep if isinstance(timestep, (torch.Tensor, float, int)) else 0.0
            return Timing(given, None, branch)
        step = self.steps.step_of(float(sigma.max()))
        return Timing(0.0, self._timesteps, branch, step, self.steps.count, 0)

    def _branch(self, options: dict[str, Any]) -> str | None:
        """Which conditionings a call is of, in their order in the batch; None where ComfyUI does not say."""
        found, ids = options.get("cond_or_uncond"), options.get("uuids") or ()
        if not found:
            return None
        ids = ids if len(ids) == len(found) else [None] * len(found)
        name = "_".join(self._name(number, one) for number, one in zip(found, ids, strict=True))
        frames = getattr(options.get("context_window"), "index_list", None)
        return name if not frames else f"{name} frames {frames[0]}-{frames[-1]}"

    def _name(self, number: int, one: Any) -> str:
        """A conditioning's name; those that share a branch (areas, masks) are told apart by ComfyUI's ids."""
        if (number, one) not in self._names:
            before = sum(number == other for other, _ in self._names)
            name = BRANCHES.get(number, f"cond-{number}")
            self._names[number, one] = name if not before else f"{name} {before + 1}"
        return self._names[number, one]


class Forward:
    """One forward of the model under a patch, from where it is decided to its end.

    Args:
        patch, sampling: what it is of.
        model: ComfyUI's ``diffusion_model``.
        given: its arguments, by place and by name, with the patch's own attention override.
        latents: what it is given to denoise; a picture, and the sound beside it.
        form: what must be equal of two forwards for one to be answered by the other.
        others: another node's attention override, or None.
        reused: whether a step cache answers it.
    """

    def __init__(
        self,
        patch: Patch,
        sampling: Sampling,
        model: torch.nn.Module,
        given: tuple[tuple, dict[str, Any]],
        latents: list[torch.Tensor],
        form: Any,
        others: Callable[..., torch.Tensor] | None,
        reused: bool,
    ):
        self.args, self.kwargs = given
        self.runtime, self.others, self.reused = sampling.runtime, others, reused
        self.thread = threading.get_ident()
        self.layer: int | None = None  # of the block that runs
        self._calls = 0  # attention calls in it
        self._patch, self._sampling, self._latents, self._form = patch, sampling, latents, form
        self._undo = ExitStack()
        if not reused:
            for layer, (_, block) in enumerate(blocks_in(model, patch.record)):
                enter, leave = functools.partial(self._enter, layer), self._leave
                self._undo.callback(block.register_forward_pre_hook(enter).remove)
                self._undo.callback(block.register_forward_hook(leave).remove)
        patch.under_way = self

    @torch.compiler.disable
    def _enter(self, layer: int, block: torch.nn.Module, args: tuple) -> None:
        self.layer, self._calls = layer, 0

    @torch.compiler.disable
    def _leave(self, block: torch.nn.Module, args: tuple, output: Any) -> None:
        self.layer = None

    def why_not_decided(self, args: tuple, kwargs: dict[str, Any]) -> str | None:
        """Why an attention is not one that the runtime is asked about."""
        if self.layer is None:
            return "attention outside of the blocks"
        self._calls += 1
        if self._calls == 1:
            return None
        q, k = (*args, kwargs.get("q"), kwargs.get("k"))[:2]
        other = isinstance(q, torch.Tensor) and isinstance(k, torch.Tensor) and q.shape[-2] != k.shape[-2]
        return "cross-attention: keys are of other tokens" if other else "a further attention of a block"

    @torch.compiler.disable
    def made(self) -> Any:
        """The output of a forward that a step cache answers."""
        output = self._sampling.forms[self._form](self.runtime.run.reuse.predict(self._latents))
        self.runtime.end_reused()
        return output

    @torch.compiler.disable
    def again(self) -> bool:
        """Whether the forward has to run once more: a sparse result was not finite."""
        return self.runtime.end_call()

    @torch.compiler.disable
    def kept(self, output: Any) -> Any:
        """The output of a forward that ran, once a step cache has what it needs of it."""
        reuse = self.runtime.run.reuse
        if reuse is not None:
            tensors, self._sampling.forms[self._form] = taken_apart(output)
            reuse.update(self._latents, tensors)
        return output

    @torch.compiler.disable
    def failed(self) -> None:
        """The forward ended in an error."""
        self.runtime.fail()

    @torch.compiler.disable
    def over(self) -> None:
        """Leave no hook behind."""
        self._undo.close()
        self._patch.let_go()


class Patch:
    """What one patch node decides, and what the latest run with it did.

    Args:
        config: what the user asked for.
        model: ComfyUI's ``diffusion_model``.

    Attributes:
        record: what is known of the model; None for one that nothing is known of, which stays as it is.
        before: the attention override that was on the model; dense calls go there.
        latest: the latest sampling run, or None before the first.

    Raises:
        ValueError: when the settings ask for what cannot be had in ComfyUI.
    """

    def __init__(self, config: Config, model: torch.nn.Module):
        self.config, self.name = config, type(model).__name__
        self.record: Known | None = known(model)
        self.before: Callable[..., torch.Tensor] | None = None
        self.latest: Sampling | None = None
        self.beside: Counter[str] = Counter()  # what ran dense without being asked about, in the latest run
        self._present: Sampling | None = None
        self._apart = self._sampling = False
        self._lock = threading.Lock()
        self.under_way: Forward | None = None
        if self.record is not None:
            self.new_runtime(model, config)  # what is wrong is said now

    def __deepcopy__(self, memo: dict[int, Any]) -> Patch:
        """Itself: options of a MODEL are copied deeply, with the override in them, and all copies are of one patch."""
        return self

    def new_runtime(self, model: torch.nn.Module, config: Config) -> Runtime:
        """Decides the calls of one run of this model."""
        layers = [Layer(name, depth) for depth, (name, _) in enumerate(blocks_in(model, self.record))]
        if not layers:
            raise ValueError(f"{self.name} has no {' or '.join(self.record.blocks)}: is ComfyUI a version ahead?")
        runtime = Runtime(config, layers, Model(self.name))
        source = getattr(runtime.cache, "signal_source", "")
        if source.startswith("block"):
            raise ValueError(
                f"cache {runtime.cache.name} looks into the first block, which a node cannot leave half way: "
                "use easycache, sea or taylorseer"
            )
        if getattr(runtime.cache, "reuse", "") == "stack":
            raise ValueError("reuse=stack runs a model without its blocks, which a node cannot: use reuse=output")
        return runtime

    # ComfyUI's ways in

    def put_on(self, model: Any) -> Any:
        """A clone of a MODEL with this on it, in place of an earlier patch of dittools; ``model`` stays as it is."""
        patched = model.clone()
        options = patched.model_options["transformer_options"]
        before = options.get(OVERRIDE)
        earlier = getattr(before, "__self__", None)
        self.before = earlier.before if isinstance(earlier, Patch) else before
        for kind, wrapper in ((FORWARD, self.forward), (SAMPLE, self.sample)):
            patched.remove_wrappers_with_key(kind, KEY)
            patched.add_wrapper_with_key(kind, KEY, wrapper)
        options[OVERRIDE] = self.attention
        return patched

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one sampling run."""
        self._end()
        self.beside.clear()
        self.latest = None
        conds = getattr(executor.class_obj, "conds", None) or {}
        self._apart, self._sampling = any(len(found) > 1 for found in conds.values()), True
        try:
            return executor(*args, **kwargs)
        finally:
            self._sampling = False
            self._end()

    # A model may be compiled: its forward is then traced from `executor` on, and nothing of this file is.
    @torch.compiler.disable(recursive=False)
    def forward(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around one forward of the model."""
        begun = self._begin(executor, args, kwargs)
        if begun is None:
            return executor(*args, **kwargs)
        try:
            if begun.reused:
                return begun.made()
            output = executor(*begun.args, **begun.kwargs)
            while begun.again():
                output = executor(*begun.args, **begun.kwargs)
            return begun.kept(output)
        except BaseException:
            begun.failed()
            raise
        finally:
            begun.over()

    @torch.compiler.disable
    def attention(self, func: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        """In place of ComfyUI's attention ``func``, with its arguments."""
        forward = self.under_way
        mine = forward is not None and forward.thread == threading.get_ident()
        others = forward.others if mine else self.before

        def theirs() -> torch.Tensor:
            return func(*args, **kwargs) if others is None else others(func, *args, **kwargs)

        reason = forward.why_not_decided(args, kwargs) if mine else OUTSIDE
        if reason is not None:
            self.beside[reason] += 1
            return theirs()
        call = read_call(args, kwargs)
        if isinstance(call, str):
            forward.runtime.skip(forward.layer, call)
            return theirs()
        settings = {"dense": lambda: call.taken(theirs()), "scale": call.scale, "mask": call.mask}
        return call.given(forward.runtime.attend(forward.layer, call.q, call.k, call.v, **settings))

    # One forward

    def _why_dense(self, model: torch.nn.Module, options: dict[str, Any]) -> str | None:
        if self.record is None:
            return f"{self.name} is no model whose token grid is known"
        if type(model).__name__ != self.name:
            return f"it is of {type(model).__name__}, and {self.name} was patched"
        if "multigpu_thread_device" in options:
            return "ComfyUI runs conditionings on several GPUs at once"
        if torch.is_grad_enabled():
            return "gradients are enabled"
        return None

    @torch.compiler.disable
    def _begin(self, executor: Any, args: tuple, kwargs: dict[str, Any]) -> Forward | None:
        """A forward starts; None for one that is left as it is."""
        given = _named(executor, args, kwargs)
        options = given.get("transformer_options") or {}
        why = self._why_dense(executor.class_obj, options)
        if why is None and not self._lock.acquire(blocking=False):
            why = "another forward of this patched model is under way"
        if why is not None:
            self.beside[f"a whole forward: {why}"] += 1
            return None
        try:
            return self._decided(executor.class_obj, args, kwargs, given)
        except BaseException:
            self._lock.release()
            raise

    def _decided(self, model: torch.nn.Module, args: tuple, kwargs: dict[str, Any], given: dict[str, Any]) -> Forward:
        options = given.get("transformer_options") or {}
        sampling = self._sampling_of(model, options)
        latents = list(given["x"]) if isinstance(given["x"], (list, tuple)) else [given["x"]]
        form = call_form({name: value for name, value in given.items() if name != "transformer_options"})
        verdict = sampling.runtime.begin_call(self._info(sampling, model, given, latents, form))
        others = options.get(OVERRIDE)
        if getattr(others, "__self__", None) is not self:  # a later node's: dense calls are its, and all else goes on
            mine = {**options, OVERRIDE: self.attention}
            args = tuple(mine if one is options else one for one in args)
            kwargs = {name: mine if one is options else one for name, one in kwargs.items()}
        else:
            others = self.before
        if others is not None:
            name = getattr(others, "__qualname__", type(others).__name__)
            sampling.runtime.run.notes[f"dense calls run through another node's attention override, {name}"] = None
        return Forward(self, sampling, model, (args, kwargs), latents, form, others, verdict is False)

    def _sampling_of(self, model: torch.nn.Module, options: dict[str, Any]) -> Sampling:
        """The run that a forward is of; a new one where nobody says when runs begin and the schedule is another."""
        present = self._present
        if present is None or (not self._sampling and present.schedule is not options.get("sample_sigmas")):
            self._end()
            self._present = self.latest = Sampling(self, model, options, self._apart)
        return self._present

    def _info(
        self,
        sampling: Sampling,
        model: torch.nn.Module,
        given: dict[str, Any],
        latents: list[torch.Tensor],
        form: Any,
    ) -> CallInfo:
        layout, why_no_grid = self._layout(model, given)
        options = given.get("transformer_options") or {}
        timing = sampling.timing(options, given.get("timestep", given.get("timesteps", given.get("t"))))
        noise = None if sampling.steps is None else lambda step, steps: sampling.steps.noise(step)
        why = None if form in sampling.forms else "an output of this form was not seen yet"
        return CallInfo(
            timing,
            None if layout is None else layout.grid(),
            latents[0].device,
            latents[0].dtype,
            layout=layout,
            why_no_grid=why_no_grid,
            reusable=Reusable(latents, noise, why, form),
        )

    def _layout(self, model: torch.nn.Module, given: dict[str, Any]) -> tuple[Layout | None, str | None]:
        try:
            return self.record.read(model, given.get), None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return None, f"the token grid of {self.name} cannot be read: {error}"

    def let_go(self) -> None:
        """The forward under way is over."""
        self.under_way = None
        self._lock.release()

    def _end(self) -> None:
        """The present run is over: what it holds is let go, its counters stay."""
        if self._present is not None:
            self._present.runtime.close()
            self._present = None

    # What it did

    def summary(self) -> str:
        """The latest run as text."""
        lines = [f"model     {self.name} in ComfyUI"]
        if self.latest is not None:
            lines += [summary.summary(self.latest.runtime)]
        elif self.record is None:
            lines += [f"note      {self.name} is no model whose token grid is known: it runs as it is"]
        else:
            lines += ["dittools: on the model, no run yet"]
        return "\n".join([*lines, *(f"beside    {count} x {what}" for what, count in self.beside.most_common())])


def patch_of(model: Any) -> Patch | None:
    """The patch on a MODEL, or on one that it was cloned from; None without one."""
    found = model.get_wrappers(FORWARD, KEY)
    return found[-1].__self__ if found else None


def _named(executor: Any, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by their names, those without one of their own among them."""
    bound = inspect.signature(executor.original).bind(*args, **kwargs)
    bound.apply_defaults()
    given = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(name)
    return given
