"""The one place where calls are decided: dense or sparse, with a new plan or a kept one."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch

from dittools import caches, corrections, methods, profile
from dittools.caches.base import Model, Trajectory
from dittools.clock import Reading, StepClock, Tick
from dittools.config import Config
from dittools.kernels.dispatch import implementations
from dittools.masks import key_bias
from dittools.methods import auto
from dittools.methods.base import Plan
from dittools.observer import Heard, Observer
from dittools.progress import OnStep, StepReports
from dittools.reuse import Latents, Reuse
from dittools.run import Call, Run
from dittools.sequence import Piece, pieces
from dittools.sparse import Sparse
from dittools.stopwatch import Stopwatch
from dittools.tally import Tally
from dittools.tokens import Layout, Part, TokenGrid


class Layer(NamedTuple):
    """A self-attention layer: its name, and how deep it is in its own transformer (from 0)."""

    name: str
    depth: int


class UnderWay(NamedTuple):
    """A run that is not over: what belongs to it beside itself."""

    clock: StepClock
    run: Run
    reports: StepReports
    life: weakref.ref | None
    source: int | None


class Runtime:
    """Decides every self-attention call of one acceleration.

    A transformer forward is `begin_call`, one `attend` a layer, `end_call`; when `end_call` says so, the
    layers run again. Counters are those of the latest run.

    Args:
        config: what the user asked for.
        layers: all self-attention layers, those of a second transformer after those of the first.
        model: what a cache's profile may ask of the model.
        identity: what a profile of methods has to fit; None where nobody knows.

    Raises:
        ValueError: when the cache knows nothing of this model, or a profile cannot be read or is of another model.

    Attributes:
        listeners: called once for every finished step with (step, steps, skipped share of its pairs, seconds
            of its transformer forwards); steps count from 0. On CUDA a report waits for the device.
        watchers: told of every self-attention call of the grid's length, before it is decided.
        plan_watchers: told of every sparse call and its plan.
        observer: told of the parts of every sparse call; watches nothing unless a bench puts another there.
        run: the latest `Run`, or None before the first.
        latest: step and branch of the latest transformer call, or None before the first.
    """

    def __init__(
        self,
        config: Config,
        layers: Sequence[Layer],
        model: Model | None = None,
        identity: profile.Model | None = None,
    ):
        self.config = config
        self.model = model or Model()
        self.identity = identity
        self.cache = caches.create(config.cache, config.cache_options)
        # What can be known now is an error at once, not in the middle of a run.
        if self.cache is not None:
            self.cache.check_files()
            self.cache.bind(self.model)
        self._profile: profile.Profile | None = None  # held, so that every run finds it read
        if config.profile is not None:
            self._check_profile()
        self.layers = list(layers)
        self.listeners: list[OnStep] = []
        self.watchers: list[Callable[[Heard], None]] = []
        self.plan_watchers: list[Callable[[Heard, Plan], None]] = []
        self.observer = Observer()
        self.run: Run | None = None
        self.latest: Tick | None = None
        self._clock = StepClock(config.dense_steps, config.dense_last_steps)
        self._aside: UnderWay | None = None  # a run whose loop goes on while another makes calls
        self._life: weakref.ref | None = None  # of the loop of the present run
        self._source: int | None = None  # of its schedule
        self._transformers = _by_transformer(self.layers)
        self._reports: StepReports | None = None
        self._tick: Tick | None = None  # set between begin_call and end_call
        self._layout: Layout | None = None  # of the present forward; None where its grid is not known
        self._why_no_grid: str | None = None  # and then why
        self._calls: dict[int, int] = {}  # attention calls of each layer in this forward
        self._cut: tuple | None = None  # the latest mask and shape, and the pieces of such a call
        self._mark = None
        self._reruns = 0
        self._sparse_in_call = False

    def _check_profile(self) -> None:
        found = self._profile = profile.named(self.config.profile)
        why = None if self.identity is None else profile.misfit_of_model(found, self.config.method, self.identity)
        if why:
            raise ValueError(f"{why}: {profile.remedy_for(self.config.method)}")

    def begin_call(
        self,
        *,
        grid: TokenGrid | None,
        timestep: torch.Tensor | float | Callable[[], Reading],
        timesteps: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        branch: str | None = None,
        step_index: int | None = None,
        steps: int | None = None,
        first: int | None = None,
        part: int = 0,
        latents: Latents | None = None,
        noise: Callable[[int, int], float | None] | None = None,
        why_compute: str | Callable[[Run], str | None] | None = None,
        form: Hashable = None,
        tokens: slice | None = None,
        layout: Layout | None = None,
        boundary: float | None = None,
        life: weakref.ref | None = None,
        source: int | None = None,
        why_no_grid: str | None = None,
    ) -> bool | None:
        """A transformer forward starts. True: compute it. False: reuse. None: `Reuse.watch` decides on the way.

        Only where a cache is on and ``latents`` are given the answer is not True. A computed forward ends with
        `end_call` and, for the cache, ``run.reuse.carry``; a reused one with `end_reused`.

        Args:
            grid: its token layout; None where it is not known, and then its calls are dense.
            why_no_grid: the reason, in one line.
            layout: where the picture is in the sequence of each call, when that may hold other tokens than
                the grid.
            device, dtype: of the latents.
            timestep, timesteps, branch, step_index, steps, first: as `StepClock.tell`.
            part: which transformer, 0 but for a second expert.
            latents: what it is given; None where its calls cannot be reused.
            noise: (step, steps) -> share of noise in them, where it is known.
            why_compute: a reason the caller knows for which this call cannot be reused, or what tells it for a run.
            form, tokens: as `Reuse.begin`.
            boundary: timestep below which the second transformer runs, where there are two.
            life: dies when the caller that has the loop returns or raises; what the run holds goes with it.
            source: identity of the scheduler: with other timesteps it has left its earlier run.

        Raises:
            ValueError: when a profile was asked for that does not fit this grid.
        """
        told = {"branch": branch, "step_index": step_index, "steps": steps, "first": first}
        self._turn_to(timesteps, source)
        # Two prompts of one run may differ in length, so the text is no part of what a run is known by.
        tick = self._clock.tell(timestep, timesteps, signature=(_shape(grid), device, dtype), **told)
        if tick.new_run or self.run is None:
            # Two steps, so that no old run stays behind when the new one cannot start.
            self.run = self._tick = None
            self._why_no_grid = why_no_grid
            self.run = self._new_run(grid, tick, device, boundary)
            self.run.notes.update(dict.fromkeys(layout.notes if layout else ()))
            self._reports = StepReports(self.run, self.listeners)
            self._life = None if life is None else weakref.ref(life(), _ender(self.run))
            self._source = source
        elif grid is not None and grid.shape != _shape(self.run.grid):
            self._change_grid(self.run, grid, tick, device)
        run, self._tick, self.latest = self.run, tick, tick
        run.steps = max(run.steps, tick.steps)
        if not run.branches:
            run.first_step = tick.step
        if tick.known:
            run.branches.add(tick.branch)
        run.tally.begin(tick.step, part, tick.known)
        self._why_no_grid = why_no_grid if grid is None else None
        self._layout = layout or (None if grid is None else _layout(grid))
        self._calls, self._cut = {}, None
        self._mark, self._reruns, self._sparse_in_call = self.run.mark(), 0, False
        self._reports.begin_call(tick.step)
        self.run.forwards.append((tick.step, Stopwatch(device)))
        if not tick.known:
            run.tally.note_unknown(self._clock.strange)
        if run.reuse is None:
            return True
        if not tick.known or tick.counted:
            run.reuse.pass_by(tick, part, "its step is not known" if not tick.known else "no schedule is known")
            return True
        if latents is None:
            return True
        known = noise(tick.step, tick.steps) if noise is not None and self.cache.needs_noise else None
        why = why_compute(run) if callable(why_compute) else why_compute
        return run.reuse.begin(tick, part, latents, known, why, form=form, tokens=tokens)

    def end_reused(self) -> None:
        """The forward is over: its output was reused, so that none of its self-attention calls ran, or only those
        before the decision.
        """
        self.run.reused_calls += self.run.tally.end_reused()
        self._end()

    def fail(self) -> None:
        """The forward ended in an error. Nothing that was to be kept of it, or for it, is."""
        if self._tick is not None:
            self._tick = self._cut = None
            self.run.tally.fail()
            self.run.let_go()

    def close(self) -> None:
        """Let go of what runs hold; the counters stay."""
        for run in (self.run, self._aside.run if self._aside else None):
            if run is not None:
                run.let_go()
        self._aside = None

    def _turn_to(self, timesteps: torch.Tensor | None, source: int | None) -> None:
        """Let the run with this schedule be the present one; one whose loop goes on meanwhile is set aside."""
        if (
            self.run is not None
            and self.run.steps - self.run.first == 1
            and self._clock.over
            and not _lives(self._life)
        ):
            self._clock.reset()  # in a schedule of one step, nothing but the end of its loop tells two runs apart
        present = self._under_way(source) if not self._clock.runs_on(timesteps) else None
        other = self._aside
        if other is not None and (other.clock.over or not _lives(other.life)):
            other.run.let_go()
            self._aside = other = None
        if self._clock.runs_on(timesteps):
            return
        if other is not None and other.clock.runs_on(timesteps):
            self._clock, self.run, self._reports, self._life, self._source = other
            self._aside = present
        elif present is not None:
            if other is not None:
                other.run.let_go()
            self._aside = present
            self._clock, self.run = StepClock(self.config.dense_steps, self.config.dense_last_steps), None

    def _under_way(self, source: int | None) -> UnderWay | None:
        """The present run, where it may go on after a call from elsewhere."""
        if self.run is None or self._clock.schedule is None or self._clock.over or not _lives(self._life):
            return None
        if source is not None and source == self._source:
            return None
        return UnderWay(self._clock, self.run, self._reports, self._life, self._source)

    def end_call(self) -> bool:
        """The forward is over. True: a sparse result was not finite, so the same forward has to run again.

        Raises:
            RuntimeError: for a non-finite result when the config is strict.
        """
        bad = self.run.non_finite_layers() if self._sparse_in_call else []
        if bad:
            # What follows the first bad layer may only have inherited it: that layer goes dense alone at
            # first.
            self._force_dense(bad[:1] if self._reruns == 0 else bad)
            self.run.rewind(self._mark, self._tick.branch)
            self.run.tally.again()
            self._calls = {}
            self._reruns, self._sparse_in_call = self._reruns + 1, False
            return True
        self.run.tally.end()
        self._end()
        return False

    def _end(self) -> None:
        run, tick = self.run, self._tick
        run.forwards[-1][1].stop()
        self._tick = self._cut = None
        self._reports.end_call()
        if tick.known and not tick.counted and tick.step == tick.steps - 1:
            run.let_go_of(tick.branch)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        dense: Callable[[], torch.Tensor],
        scale: float | None = None,
        mask: torch.Tensor | None = None,
        why_dense: str | None = None,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: index into ``layers``.
            q, k, v: ``[B, S, H, D]`` after RoPE.
            dense: the original attention of this very call.
            scale: factor on the logits; ``1 / sqrt(D)`` by default.
            mask: as PyTorch's attention takes it. One that pads is honoured by leaving hidden keys out, any
                other by running dense.
            why_dense: a reason the caller knows for which only ``dense`` will do.

        Returns:
            ``[B, S, H, D]``.

        Raises:
            ValueError: when a method was asked for by name and the call is not one it can take.
        """
        if self._tick is None:
            return dense()
        tally = self.run.tally
        if tally.came(layer) and q.shape[1] != k.shape[1]:
            return dense()  # an adapter's own attention, beside the layer's
        tally.call(layer)
        reuse = self.run.reuse
        # Keys of other tokens are no self-attention: an adapter's pictures, or what a model keeps itself.
        if reuse is None or q.shape[1] != k.shape[1]:
            return self._attend(layer, q, k, v, dense, scale, mask, why_dense)
        kept = reuse.attention(layer, q)
        if kept is not None:
            self.run.reused_calls += 1
            return kept
        out = self._attend(layer, q, k, v, dense, scale, mask, why_dense)
        reuse.keep_attention(layer, out)
        return out

    def _attend(
        self, layer: int, q, k, v, dense, scale: float | None, mask: torch.Tensor | None, why_dense: str | None
    ) -> torch.Tensor:
        self._tell(layer, q, k, v, scale)
        if self._scheduled_dense(layer):
            self._count(layer, q, k)
            return dense()
        parts = why_dense or self._parts(layer, q, k, mask)
        if isinstance(parts, str):
            self.run.fallbacks[parts] += 1
            self._count(layer, q, k)
            return dense()
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        number = self._calls[layer] = self._calls.get(layer, 0) + 1
        sparse = Sparse(self.run, self.config, self.observer, self.plan_watchers)
        out = sparse.attend(self._tick, layer, number, q, k, v, parts, mask, scale)
        if out is None:
            self._count(layer, q, k)
            return dense()
        self._sparse_in_call = True
        return out

    def _tell(self, layer: int, q, k, v, scale: float | None) -> None:
        """Let watchers hear of a call that is in the order of its grid."""
        grid = self.run.grid
        known = self.watchers and self._layout is not None
        heard = known and q.shape == k.shape and q.shape[1] == grid.tokens
        if heard and self._layout.in_order(grid.tokens):
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            for watch in self.watchers:
                watch(Heard(layer, q, k, v, scale, self._tick, grid))

    def skip(self, layer: int, reason: str) -> None:
        """Count a call that ran as if nothing were attached, for this reason."""
        if self._tick is not None:
            self.run.tally.call(layer)
            self.run.fallbacks[reason] += 1
            pairs = 1.0 if self.run.grid is None else float(self.run.grid.tokens) ** 2
            self.run.calls.append(Call(self._tick.step, layer, pairs, None))

    def heard(self, layer: int) -> bool:
        """Whether this layer has had a call in the present forward, sparse or not."""
        return self._tick is not None and self.run.tally.came(layer) > 0

    def _scheduled_dense(self, layer: int) -> bool:
        asked = self.config.method == "dense" or self.layers[layer].depth < self.config.dense_layers
        return asked or self._tick.dense

    def _why_dense(self, layer: int, q: torch.Tensor, k: torch.Tensor) -> str | None:
        run = self.run
        if self._why_no_grid is not None:
            return self._told(self._why_no_grid)
        if run.method is None:
            return run.why_dense
        if (self._tick.step, layer) in run.dense_from:
            return "non-finite result"
        if q.shape != k.shape:
            return f"queries {list(q.shape[1:3])} and keys {list(k.shape[1:3])} differ in [tokens, heads]"
        problem = self._no_kernel(q)
        try:
            self._layout.parts_of(q.shape[1])
        except ValueError as error:
            problem = str(error)
        return problem and self._told(problem)

    def _told(self, problem: str) -> str:
        """A reason for dense calls; noted where a method was asked for by name, which cannot take them."""
        if self.config.method not in ("auto", "dense"):
            self.run.notes[f"method {self.config.method} cannot take some calls, which ran dense: {problem}"] = None
        return problem

    def _parts(self, layer: int, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> list[Piece] | str:
        """What sparse calls can take of this one, or why it runs dense."""
        reason = self._why_dense(layer, q, k)
        if reason is not None:
            return reason
        about = (q.shape[:2], q.device)
        if self._cut is None or self._cut[1] != about or not _same_mask(self._cut[0], mask):
            self._cut = (mask, about, self._pieces(q, mask))
        return self._cut[2]

    def _pieces(self, q: torch.Tensor, mask: torch.Tensor | None) -> list[Piece] | str:
        """What sparse calls can take of every layer of this forward that has these tokens and this mask."""
        tokens = q.shape[1]
        bias = None if mask is None else key_bias(mask, *q.shape[:2], self._layout.picture_start(tokens))
        if isinstance(bias, str):
            return bias
        found = pieces(self._layout, tokens, bias, q.device)
        if not isinstance(found, str) and self.run.grid.tokens < found[0].grid.tokens:
            self.run.grid = found[0].grid  # text is first seen here where no argument tells it
        return found

    def _no_kernel(self, q: torch.Tensor) -> str | None:
        kind = (q.device, q.dtype, q.shape[-1])
        if kind not in self.run.why_no_kernel:
            self.run.why_no_kernel[kind] = self._ask_for_kernel(q)
        return self.run.why_no_kernel[kind]

    def _ask_for_kernel(self, q: torch.Tensor) -> str | None:
        able = dict(implementations(q.device, q.dtype, q.shape[-1]))
        # On a GPU the portable kernel is for those who ask: it has not been seen to beat dense there.
        name = "triton" if q.device.type == "cuda" and self.config.method == "auto" else "portable"
        return f"no sparse kernel: {able[name]}" if able[name] else None

    def _new_run(self, grid: TokenGrid, tick: Tick, device: torch.device, boundary: float | None = None) -> Run:
        config = self.config
        run = Run(grid, tick.steps, len(self.layers), None, None, self._block_size(device))
        run.first, run.tally = tick.first, Tally(self._transformers)
        self._choose(run, tick, device)
        self._note_dense(run, tick)
        if run.correction is None and config.correction != "none":
            run.notes[f"a dense run skips nothing that correction {config.correction} could make up for"] = None
        if config.method != "dense" and config.dense_layers > max(layer.depth for layer in self.layers):
            run.notes[f"dense_layers {config.dense_layers} leaves no layer to run sparse"] = None
        if self.cache is not None:
            run.reuse = self._new_reuse(run, tick, boundary)
        return run

    def _block_size(self, device: torch.device) -> int:
        asked = self.config.block_size
        return asked if asked != "auto" else 128 if device.type == "cuda" else 64

    def _choose(self, run: Run, tick: Tick, device: torch.device) -> None:
        """What decides the pairs of a run on its present grid."""
        config, grid, size = self.config, run.grid, run.block_size
        if grid is None and config.method != "dense":
            run.method, run.why_dense = None, self._why_no_grid
            return
        if config.method == "auto":
            runs = tick.steps - tick.first
            method = auto.pick(runs, grid.frames, device.type)
            why = auto.why_dense(grid, config.sparsity, size, device, runs)
        else:
            method = methods.create(config.method, config.options)
            why = method.why_not(grid, size)
            if why:
                run.notes[f"{why}: calls ran dense; use more frames, a larger size or method 'auto'"] = None
        run.method, run.why_dense = (None if why else method), why
        if why is not None:
            return
        if method.profile_use != "none":
            needed = method.profile_use == "needed"
            run.profile, notes = profile.choose(config.profile, method.name, needed, self.identity, grid, tick.steps)
            self._profile = run.profile
            run.notes.update(dict.fromkeys(notes))
            run.sparse_layers = self._sparse_layers()
        if config.method != "dense":
            run.correction = corrections.create(config.correction_of(method), config.correction_options)

    def _change_grid(self, run: Run, grid: TokenGrid, tick: Tick, device: torch.device) -> None:
        """The tokens of a run changed on its way: what was planned for the others is of no use."""
        run.plans.clear()
        run.states.clear()
        run.grid = grid
        self._choose(run, tick, device)

    def _note_dense(self, run: Run, tick: Tick) -> None:
        """Say at once where no step of a run can be sparse."""
        config = self.config
        if config.method == "dense" or run.why_dense is not None:
            return
        asked = f"dense_steps {config.dense_steps:g}"
        if config.dense_last_steps:
            asked += f" and dense_last_steps {config.dense_last_steps:g}"
        runs = tick.steps - tick.first
        if tick.counted:
            if self._clock.needs_all_steps():
                run.notes[
                    f"every call is dense: no schedule is known, so {asked} cannot be told: "
                    "give dense_steps as a number of steps"
                ] = None
        elif all(self._clock.dense(step, tick.steps, tick.first) for step in range(tick.first, tick.steps)):
            run.notes[f"every step is dense: {asked} takes all {runs} of this run"] = None

    def _sparse_layers(self) -> dict[int, tuple[int, ...]]:
        """For each layer, the layers of the same transformer that are not asked to stay dense."""
        shared = {}
        for inside in self._transformers:
            sparse = tuple(i for i in inside if self.layers[i].depth >= self.config.dense_layers)
            shared.update(dict.fromkeys(inside, sparse))
        return shared

    def _new_reuse(self, run: Run, tick: Tick, boundary: float | None) -> Reuse:
        """The cache for a run. Steps that attention keeps dense are computed, so that both share one warm-up."""
        model = dataclasses.replace(self.model, frame_tokens=0 if run.grid is None else run.grid.frame)
        cache = self.cache.bind(model)
        first, steps = tick.first, run.steps
        sparse = run.method is not None and self.config.method != "dense"
        timesteps = self._clock.timesteps(steps)
        taken = model.takes_over(timesteps)
        if boundary is not None and timesteps:
            taken = next((step for step, t in enumerate(timesteps) if t < boundary), steps)
        kept = cache.kept(steps, (first,) if taken is None else (first, taken))
        dense = [sparse and self._clock.dense(step, steps, first) for step in range(steps)]
        forced = tuple(
            kept[step] or dense[step] or (step > first and dense[step] != dense[step - 1]) for step in range(steps)
        )
        if tick.counted:
            run.notes[f"{cache.name}: no schedule is known, so every call is computed"] = None
        return Reuse(cache, Trajectory(steps, timesteps, forced, model, sparse, first))

    def _count(self, layer: int, q: torch.Tensor, k: torch.Tensor) -> None:
        """Count a dense call."""
        pairs = float(q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1])
        self.run.calls.append(Call(self._tick.step, layer, pairs, None))
        self.run.dtype = q.dtype

    def _force_dense(self, bad: list[int]) -> None:
        dtype = str(self.run.dtype).removeprefix("torch.")
        for layer in bad:
            what = f"non-finite result in {self.layers[layer].name} at step {self._tick.step} in {dtype}"
            if self.config.strict:
                self._tick = None
                raise RuntimeError(f"{what}: stopped, because strict was asked for")
            self.run.notes[f"{what}: that layer ran dense in this step"] = None
            self.run.dense_from.add((self._tick.step, layer))


def _same_mask(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two calls have the same mask; some models make theirs anew in each layer."""
    if one is None or other is None:
        return one is other
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _by_transformer(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """The layers of each transformer, by number."""
    transformers: list[list[int]] = []
    for index, layer in enumerate(layers):
        if layer.depth == 0 or not transformers:
            transformers.append([])
        transformers[-1].append(index)
    return [tuple(inside) for inside in transformers]


def _lives(life: weakref.ref | None) -> bool:
    """Whether a loop goes on; one of which that is not known may."""
    return life is None or life() is not None


def _ender(run: Run) -> Callable[[object], None]:
    """What ends a run when the caller that has its loop is gone."""
    reference = weakref.ref(run)

    def end(_: object) -> None:
        ended = reference()
        if ended is not None:
            ended.over = True
            ended.let_go()

    return end


def _shape(grid: TokenGrid | None) -> tuple[int, int, int] | None:
    return None if grid is None else grid.shape


def _layout(grid: TokenGrid) -> Layout:
    """The layout of calls that have exactly the tokens of the grid."""
    text = (Part("text", grid.text),) if grid.text else ()
    first = grid.text_position == "first"
    return Layout(*grid.shape, text if first else (), grid.parts if first else grid.parts + text)
