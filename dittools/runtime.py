"""The one place where calls are decided: dense or sparse, with a new plan or a kept one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from dittools import methods, profile
from dittools.attention import attend
from dittools.clock import StepClock, Tick
from dittools.config import Config
from dittools.kernels.dispatch import implementations
from dittools.methods import auto
from dittools.methods.base import AttentionCall, Plan, StayDense
from dittools.profile import Model
from dittools.progress import OnStep, StepReports
from dittools.run import Call, Kept, Run
from dittools.stopwatch import Stopwatch
from dittools.tokens import TokenGrid


class Layer(NamedTuple):
    """A self-attention layer: its name, and how deep it is in its own transformer (from 0)."""

    name: str
    depth: int


class Heard(NamedTuple):
    """One self-attention call as a watcher hears it: before anything is decided of it, dense or sparse."""

    layer: int
    q: torch.Tensor  # [B, S, H, D], as are k and v
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    tick: Tick
    grid: TokenGrid


class Runtime:
    """Decides every self-attention call of one acceleration.

    A transformer forward is `begin_call`, one `attend` a layer, `end_call`; when `end_call` says so, the
    layers run again. Counters are those of the latest run.

    Args:
        config: what the user asked for.
        layers: all self-attention layers, those of a second transformer after those of the first.
        model: what a profile has to fit; None where nobody knows.

    Attributes:
        listeners: called once for every finished step with (step, steps, skipped share of its pairs, seconds
            of its transformer forwards); steps count from 0. On CUDA a report waits for the device.
        watchers: told of every self-attention call of the grid's length, before it is decided.
        plan_watchers: told of every sparse call and its plan.
        run: the latest `Run`, or None before the first.
    """

    def __init__(self, config: Config, layers: Sequence[Layer], model: Model | None = None):
        self.config = config
        self.layers = list(layers)
        self.model = model
        self.listeners: list[OnStep] = []
        self.watchers: list[Callable[[Heard], None]] = []
        self.plan_watchers: list[Callable[[Heard, Plan], None]] = []
        self.run: Run | None = None
        self._clock = StepClock(config.dense_steps, config.dense_last_steps)
        self._reports: StepReports | None = None
        self._tick: Tick | None = None  # set between begin_call and end_call
        self._mark = None
        self._reruns = 0
        self._sparse_in_call = False

    def begin_call(
        self,
        *,
        grid: TokenGrid,
        timestep: torch.Tensor | float,
        timesteps: torch.Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
        branch: str | None = None,
        step_index: int | None = None,
        steps: int | None = None,
    ) -> None:
        """A transformer forward starts.

        Args:
            grid: its token layout.
            device, dtype: of the latents; a change starts a new run.
            timestep, timesteps, branch, step_index, steps: as `StepClock.tell`.

        Raises:
            ValueError: when a method was asked for by name that cannot run on this grid.
        """
        told = {"branch": branch, "step_index": step_index, "steps": steps}
        tick = self._clock.tell(timestep, timesteps, signature=(grid, device, dtype), **told)
        if tick.new_run or self.run is None:
            # Two steps, so that no old run stays behind when the new one cannot start.
            self.run = self._tick = None
            self.run = self._new_run(grid, tick.steps, device)
            self._reports = StepReports(self.run, self.listeners)
        self._tick = tick
        self._mark, self._reruns, self._sparse_in_call = self.run.mark(), 0, False
        self._reports.begin_call(tick.step)
        self.run.forwards.append((tick.step, Stopwatch(device)))

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
            self._reruns, self._sparse_in_call = self._reruns + 1, False
            return True
        self.run.forwards[-1][1].stop()
        self._tick = None
        self._reports.end_call()
        return False

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        dense: Callable[[], torch.Tensor],
        scale: float | None = None,
        why_dense: str | None = None,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: index into ``layers``.
            q, k, v: ``[B, S, H, D]`` after RoPE.
            dense: the original attention of this very call.
            scale: factor on the logits; ``1 / sqrt(D)`` by default.
            why_dense: a reason the caller knows for which only ``dense`` will do, for example a mask.

        Returns:
            ``[B, S, H, D]``.

        Raises:
            ValueError: when a method was asked for by name and the call is not one it can take.
        """
        if self._tick is None:
            return dense()
        heard = self._heard(layer, q, k, v, scale)
        if self._scheduled_dense(layer):
            self._count(layer, q, k, None)
            return dense()
        reason = why_dense or self._why_dense(layer, q, k)
        if reason is not None:
            self.run.fallbacks[reason] += 1
            self._count(layer, q, k, None)
            return dense()
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        plan, density = self._plan(layer, q, k, v, scale)
        if isinstance(plan, StayDense):
            self.run.fallbacks[plan.reason] += 1
            self._count(layer, q, k, None)
            return dense()
        for watch in self.plan_watchers:
            watch(heard, plan)
        out, _ = attend(q, k, v, plan, scale)
        self._count(layer, q, k, density)
        self.run.flag_non_finite(layer, out)
        self._sparse_in_call = True
        return out

    def skip(self, layer: int, reason: str) -> None:
        """Count a call that ran as if nothing were attached, for this reason."""
        if self._tick is not None:
            self.run.fallbacks[reason] += 1
            self.run.calls.append(Call(self._tick.step, layer, float(self.run.grid.tokens) ** 2, None))

    def _heard(self, layer: int, q, k, v, scale: float | None) -> Heard:
        heard = Heard(layer, q, k, v, q.shape[-1] ** -0.5 if scale is None else scale, self._tick, self.run.grid)
        if q.shape == k.shape and q.shape[1] == self.run.grid.tokens:
            for watch in self.watchers:
                watch(heard)
        return heard

    def _scheduled_dense(self, layer: int) -> bool:
        asked = self.config.method == "dense" or self.layers[layer].depth < self.config.dense_layers
        return asked or self._tick.dense

    def _why_dense(self, layer: int, q: torch.Tensor, k: torch.Tensor) -> str | None:
        run = self.run
        if run.method is None:
            return run.why_dense
        if (self._tick.step, layer) in run.dense_from:
            return "non-finite result"
        if q.shape != k.shape:
            return f"queries {list(q.shape[1:3])} and keys {list(k.shape[1:3])} differ in [tokens, heads]"
        problem = self._no_kernel(q)
        if q.shape[1] != run.grid.tokens:
            problem = f"attention over {q.shape[1]} tokens, where the grid has {run.grid.tokens}"
        if problem and self.config.method != "auto":
            name = self.layers[layer].name
            raise ValueError(f"method {self.config.method} cannot run in {name}: {problem}; use method 'auto'")
        return problem

    def _no_kernel(self, q: torch.Tensor) -> str | None:
        able = {}
        for name, reason in implementations(q.device, q.dtype, q.shape[-1]):
            able[name] = reason
        # On a GPU the portable kernel is for those who ask: it has not been seen to beat dense there.
        name = "triton" if q.device.type == "cuda" and self.config.method == "auto" else "portable"
        return f"no sparse kernel: {able[name]}" if able[name] else None

    def _plan(self, layer: int, q, k, v, scale: float) -> tuple[Plan | StayDense, torch.Tensor | None]:
        run, tick, shape = self.run, self._tick, (q.shape, q.dtype, q.device)
        kept = run.plans.get((layer, tick.branch))
        if kept and kept.shape == shape and tick.step - kept.step < self.config.refresh:
            run.plans_reused += 1
            return kept.plan(), kept.density
        call = AttentionCall(
            layer=layer,
            layers=len(self.layers),
            branch=tick.branch,
            step=tick.step,
            steps=tick.steps,
            grid=run.grid,
            sparsity=self.config.sparsity,
            scale=scale,
            generator=self._generator(tick.step, layer),
            block_size=run.block_size,
            memo=run.memo,
            state=run.states[layer, tick.branch],
            profile=run.profile,
        )
        plan = run.method.plan(q, k, v, call)
        if isinstance(plan, StayDense):
            return plan, None
        density = plan.mask.density().mean()
        if self.config.refresh > 1:
            run.plans[layer, tick.branch] = Kept(tick.step, shape, plan.again or (lambda: plan), density)
        run.facts.append((layer, plan.facts))
        run.notes.update(dict.fromkeys(plan.notes))
        return plan, density

    def _generator(self, step: int, layer: int) -> torch.Generator:
        seed = (self.config.seed * 100_003 + step) * 10_007 + layer
        return torch.Generator().manual_seed(seed % (1 << 63))

    def _new_run(self, grid: TokenGrid, steps: int, device: torch.device) -> Run:
        config = self.config
        size = config.block_size if config.block_size != "auto" else 128 if device.type == "cuda" else 64
        method, why = methods.create(config.method, config.options), None
        if config.method == "auto":
            why = auto.why_dense(grid, config.sparsity, size, device)
        elif problem := method.why_not(grid, size):
            raise ValueError(f"{problem}; use more frames, a larger size or method 'auto'")
        run = Run(grid, steps, len(self.layers), None if why else method, why, size)
        if why is None and method.profile_use != "none":
            needed = method.profile_use == "needed"
            run.profile, notes = profile.choose(config.profile, method.name, needed, self.model, grid, steps)
            run.notes.update(dict.fromkeys(notes))
        if config.method != "dense" and config.dense_layers > max(layer.depth for layer in self.layers):
            run.notes[f"dense_layers {config.dense_layers} leaves no layer to run sparse"] = None
        return run

    def _count(self, layer: int, q: torch.Tensor, k: torch.Tensor, density: torch.Tensor | None) -> None:
        pairs = float(q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1])
        self.run.calls.append(Call(self._tick.step, layer, pairs, density))
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
