"""What a run starts with: the method that decides its pairs, its profile, its correction and its step cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from dittools import attention_profile as profile
from dittools import caches, corrections, methods
from dittools.caches.decided import Decided
from dittools.caches.state import Model, Trajectory
from dittools.caches.step_cache import StepCache
from dittools.call_info import CallInfo, Layer
from dittools.clock import StepClock, StepInfo
from dittools.config import Config
from dittools.error_bound import ErrorBound
from dittools.methods import auto
from dittools.plans.loaded import LoadedPlans
from dittools.plans.record import PlanRecord
from dittools.run import Run
from dittools.tally import Tally


class RunSetup:
    """Makes the runs of one acceleration.

    Args:
        config: what the user asked for.
        layers: all self-attention layers, those of a second transformer after those of the first.
        model: what a cache's profile may ask of the model.
        identity: what a profile of methods has to fit; None where nobody knows.

    Attributes:
        cache: the step cache with its settings; None without one.
        keep_plans: whether runs to come keep what they decide.

    Raises:
        ValueError: when the cache knows nothing of this model, or a profile or plans cannot be read or are of another
            model.
    """

    def __init__(self, config: Config, layers: Sequence[Layer], model: Model, identity: profile.Model | None):
        self.config, self.layers, self.model, self.identity = config, list(layers), model, identity
        self.keep_plans = False
        self._transformers = _by_transformer(self.layers)
        self._loaded = None if config.plans is None else LoadedPlans(config.plans, identity)
        self.cache = caches.create(config.cache, config.cache_options)
        if self._loaded is not None and (decided := self._loaded.manifest.cache) is not None:
            self.cache = Decided.of(config.cache, decided)
        # What can be known now is an error at once, not in the middle of a run.
        if self.cache is not None:
            self.cache.check_files()
            self.cache.bind(self.model)
        self._profile: profile.Profile | None = None  # held, so that every run finds it read
        if config.profile is not None:
            self._profile = profile.named(config.profile)
            why = None if identity is None else profile.misfit_of_model(self._profile, config.method, identity)
            if why:
                raise ValueError(f"{why}: {profile.remedy_for(config.method)}")

    def new_run(self, info: CallInfo, step: StepInfo, clock: StepClock) -> Run:
        """The run that a forward starts.

        Raises:
            ValueError: when a profile was asked for that does not fit its grid.
        """
        config = self.config
        run = Run(info.grid, step.steps, len(self.layers), self._block_size(info.device))
        run.first, run.tally = step.first, Tally(self._transformers)
        run.recorded = PlanRecord() if self.keep_plans else None
        self._choose(run, step, info)
        self._note_dense(run, step, clock)
        if config.max_error is not None:
            run.bound = ErrorBound(config.max_error, 1 - config.sparsity)
        if run.correction is None and config.names_correction:
            run.notes[f"a dense run skips nothing that correction {config.correction} could make up for"] = None
        if config.method != "dense" and config.dense_layers > max(layer.depth for layer in self.layers):
            run.notes[f"dense_layers {config.dense_layers} leaves no layer to run sparse"] = None
        if self.cache is not None:
            run.reuse = self._new_reuse(run, step, clock, info.boundary)
        run.notes.update(dict.fromkeys(info.layout.notes if info.layout else ()))
        return run

    def _block_size(self, device: torch.device) -> int:
        asked = self.config.block_size
        return asked if asked != "auto" else 128 if device.type == "cuda" else 64

    def change_grid(self, run: Run, info: CallInfo, step: StepInfo) -> None:
        """The tokens of a run changed on its way: what was planned for the others is of no use."""
        run.plans.clear()
        run.states.clear()
        run.grid = info.grid
        self._choose(run, step, info)

    def _choose(self, run: Run, step: StepInfo, info: CallInfo) -> None:
        """What decides the pairs of a run on its present grid."""
        config, grid, size = self.config, run.grid, run.block_size
        if grid is None and config.method != "dense":
            run.method, run.why_dense = None, info.why_no_grid
            return
        if self._loaded is not None:
            self._load(run, step)
            return
        if config.method == "auto":
            runs = step.steps - step.first
            method = auto.pick(runs, grid, info.device.type)
            why = auto.why_dense(grid, config.sparsity, size, info.device, runs)
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
            run.profile, notes = profile.choose(config.profile, method.name, needed, self.identity, grid, step.steps)
            self._profile = run.profile
            run.notes.update(dict.fromkeys(notes))
            run.sparse_layers = self._sparse_layers()
        if config.method != "dense":
            run.correction = corrections.create(config.correction_of(method), config.correction_options)
            run.picked_correction = config.picks_correction

    def _load(self, run: Run, step: StepInfo) -> None:
        """A file decides the pairs: the method is known by name and is not asked."""
        config, manifest = self.config, self._loaded.manifest
        self._loaded.check(run.grid, step)
        run.loaded, run.why_dense = self._loaded, None
        run.method = methods.create(manifest.method["name"], manifest.method["options"])
        if config.method != "dense":
            run.correction = corrections.create(config.correction, config.correction_options)
        whose = f"{manifest.name}, which method {run.method.name} made with {manifest.made.weights} weights"
        run.notes[f"{whose}: this run decides nothing"] = None

    def _note_dense(self, run: Run, step: StepInfo, clock: StepClock) -> None:
        """Say at once where no step of a run can be sparse."""
        config = self.config
        if config.method == "dense" or run.why_dense is not None:
            return
        asked = f"dense_steps {config.dense_steps:g}"
        if config.dense_last_steps:
            asked += f" and dense_last_steps {config.dense_last_steps:g}"
        runs = step.steps - step.first
        if step.counted:
            if clock.needs_all_steps():
                run.notes[
                    f"every call is dense: no schedule is known, so {asked} cannot be told: "
                    "give dense_steps as a number of steps"
                ] = None
        elif all(clock.dense(one, step.steps, step.first) for one in range(step.first, step.steps)):
            run.notes[f"every step is dense: {asked} takes all {runs} of this run"] = None

    def _sparse_layers(self) -> dict[int, tuple[int, ...]]:
        """For each layer, the layers of the same transformer that are not asked to stay dense."""
        shared = {}
        for inside in self._transformers:
            sparse = tuple(i for i in inside if self.layers[i].depth >= self.config.dense_layers)
            shared.update(dict.fromkeys(inside, sparse))
        return shared

    def _new_reuse(self, run: Run, step: StepInfo, clock: StepClock, boundary: float | None) -> StepCache:
        """The cache for a run. Steps that attention keeps dense are computed, so that both share one warm-up."""
        model = dataclasses.replace(self.model, frame_tokens=0 if run.grid is None else run.grid.frame)
        cache = self.cache.bind(model)
        first, steps = step.first, run.steps
        sparse = run.method is not None and self.config.method != "dense"
        timesteps = clock.timesteps(steps)
        taken = model.takes_over(timesteps)
        if boundary is not None and timesteps:
            taken = next((one for one, t in enumerate(timesteps) if t < boundary), steps)
        kept = cache.kept(steps, (first,) if taken is None else (first, taken))
        dense = [sparse and clock.dense(one, steps, first) for one in range(steps)]
        forced = tuple(
            kept[one] or dense[one] or (one > first and dense[one] != dense[one - 1]) for one in range(steps)
        )
        if step.counted:
            run.notes[f"{cache.name}: no schedule is known, so every call is computed"] = None
        return cache.begin_run(Trajectory(steps, timesteps, forced, model, sparse, first))


def _by_transformer(layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """The layers of each transformer, by number."""
    transformers: list[list[int]] = []
    for index, layer in enumerate(layers):
        if layer.depth == 0 or not transformers:
            transformers.append([])
        transformers[-1].append(index)
    return [tuple(inside) for inside in transformers]
