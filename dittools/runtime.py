"""The one place where calls are decided: dense or sparse, with a new plan or a kept one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from dittools import methods
from dittools.attention import attend
from dittools.clock import StepClock, Tick
from dittools.config import Config
from dittools.kernels.dispatch import implementations
from dittools.methods import auto
from dittools.methods.base import AttentionCall, Plan
from dittools.progress import OnStep, StepReports
from dittools.run import Call, Kept, Run
from dittools.sequence import Piece, pieces, shown_keys
from dittools.stopwatch import Stopwatch
from dittools.tokens import Layout, TokenGrid


class Layer(NamedTuple):
    """A self-attention layer: its name, and how deep it is in its own transformer (from 0)."""

    name: str
    depth: int


class Runtime:
    """Decides every self-attention call of one acceleration.

    A transformer forward is `begin_call`, one `attend` a layer, `end_call`; when `end_call` says so, the
    layers run again. Counters are those of the latest run.

    Args:
        config: what the user asked for.
        layers: all self-attention layers, those of a second transformer after those of the first.

    Attributes:
        listeners: called once for every finished step with (step, steps, skipped share of its pairs, seconds
            of its transformer forwards); steps count from 0. On CUDA a report waits for the device.
        run: the latest `Run`, or None before the first.
    """

    def __init__(self, config: Config, layers: Sequence[Layer]):
        self.config = config
        self.layers = list(layers)
        self.listeners: list[OnStep] = []
        self.run: Run | None = None
        self._clock = StepClock(config.dense_steps, config.dense_last_steps)
        self._reports: StepReports | None = None
        self._tick: Tick | None = None  # set between begin_call and end_call
        self._layout: Layout | None = None  # None: every call has exactly the tokens of the grid
        self._calls: dict[int, int] = {}  # attention calls of each layer in this forward
        self._shown: tuple | None = None  # the latest mask, and the keys it shows
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
        layout: Layout | None = None,
    ) -> None:
        """A transformer forward starts.

        Args:
            grid: its token layout.
            layout: where the picture is in the sequence of each call, when that may hold other tokens than
                the grid.
            device, dtype: of the latents; a change starts a new run.
            timestep, timesteps, branch, step_index, steps: as `StepClock.tell`.

        Raises:
            ValueError: when a method was asked for by name that cannot run on this grid.
        """
        told = {"branch": branch, "step_index": step_index, "steps": steps}
        # Two prompts of one run may differ in length, so the text is no part of what a run is known by.
        tick = self._clock.tell(timestep, timesteps, signature=(grid.shape, device, dtype), **told)
        if tick.new_run or self.run is None:
            # Two steps, so that no old run stays behind when the new one cannot start.
            self.run = self._tick = None
            self.run = self._new_run(grid, tick.steps, device)
            self._reports = StepReports(self.run, self.listeners)
        self._tick, self._layout = tick, layout or _layout(grid)
        self._calls, self._shown = {}, None
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
            self._calls = {}
            self._reruns, self._sparse_in_call = self._reruns + 1, False
            return True
        self.run.forwards[-1][1].stop()
        self._tick = self._shown = None
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
        if self._scheduled_dense(layer):
            self._count(layer, q, k, None)
            return dense()
        parts = why_dense or self._parts(layer, q, k, mask)
        if isinstance(parts, str):
            self.run.fallbacks[parts] += 1
            self._count(layer, q, k, None)
            return dense()
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        out = self._sparse(layer, q, k, v, parts, mask, scale)
        self.run.flag_non_finite(layer, out)
        self._sparse_in_call = True
        return out

    def _sparse(self, layer: int, q, k, v, parts: list[Piece], mask: torch.Tensor | None, scale: float) -> torch.Tensor:
        """The call, piece by piece; one `Call` is counted for all."""
        call = self._calls[layer] = self._calls.get(layer, 0) + 1
        out = None if parts[0].whole else torch.empty_like(q)
        pairs, kept = 0.0, 0.0
        for index, piece in enumerate(parts):
            piece_q, piece_k, piece_v = (piece.take(x) for x in (q, k, v))
            plan, density = self._plan(layer, piece_q, piece_k, piece_v, scale, piece.grid, (call, index))
            part, _ = attend(piece_q, piece_k, piece_v, plan, scale)
            size = float(len(piece_q)) * piece.grid.tokens**2
            pairs, kept = pairs + size, size * density + kept
            if out is None:
                out = part
                continue
            piece.put(part, out)
            if piece.rest is not None:
                piece.put_rest(q, k, v, mask, scale, out)
        # With one piece the density itself, a plan's own tensor: it is read from the device once for all steps.
        self.run.calls.append(
            Call(self._tick.step, layer, pairs * q.shape[2], density if len(parts) == 1 else kept / pairs)
        )
        self.run.dtype = q.dtype
        return out

    def skip(self, layer: int, reason: str) -> None:
        """Count a call that ran as if nothing were attached, for this reason."""
        if self._tick is not None:
            self.run.fallbacks[reason] += 1
            self.run.calls.append(Call(self._tick.step, layer, float(self.run.grid.tokens) ** 2, None))

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
        try:
            self._layout.around(q.shape[1])
        except ValueError as error:
            problem = str(error)
        if problem and self.config.method != "auto":
            name = self.layers[layer].name
            raise ValueError(f"method {self.config.method} cannot run in {name}: {problem}; use method 'auto'")
        return problem

    def _parts(self, layer: int, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> list[Piece] | str:
        """What sparse calls can take of this one, or why it runs dense."""
        reason = self._why_dense(layer, q, k)
        if reason is not None:
            return reason
        shown = None if mask is None else self._keys(mask, q)
        if isinstance(shown, str):
            return shown
        found = pieces(self._layout, q.shape[1], shown, q.device)
        if not isinstance(found, str) and self.run.grid.text < found[0].grid.text:
            self.run.grid = found[0].grid  # text is first seen here where no argument tells it
        return found

    def _keys(self, mask: torch.Tensor, q: torch.Tensor) -> torch.Tensor | str:
        """`shown_keys`, asked once for a mask that all layers of a forward are given."""
        shape = q.shape[:2]
        if self._shown is None or self._shown[0] is not mask or self._shown[1] != shape:
            self._shown = (mask, shape, shown_keys(mask, *shape))
        return self._shown[2]

    def _no_kernel(self, q: torch.Tensor) -> str | None:
        able = {}
        for name, reason in implementations(q.device, q.dtype, q.shape[-1]):
            able[name] = reason
        # On a GPU the portable kernel is for those who ask: it has not been seen to beat dense there.
        name = "triton" if q.device.type == "cuda" and self.config.method == "auto" else "portable"
        return f"no sparse kernel: {able[name]}" if able[name] else None

    def _plan(
        self, layer: int, q, k, v, scale: float, grid: TokenGrid, part: tuple[int, int]
    ) -> tuple[Plan, torch.Tensor]:
        run, tick, shape = self.run, self._tick, (q.shape, q.dtype, q.device)
        kept = run.plans.get((layer, tick.branch, part))
        if kept and kept.shape == shape and tick.step - kept.step < self.config.refresh:
            run.plans_reused += 1
            return kept.plan(), kept.density
        call = AttentionCall(
            layer=layer,
            layers=len(self.layers),
            branch=tick.branch,
            step=tick.step,
            steps=tick.steps,
            grid=grid,
            sparsity=self.config.sparsity,
            scale=scale,
            generator=self._generator(tick.step, layer),
            block_size=run.block_size,
            memo=run.memo.setdefault(grid, {}),
        )
        plan = run.method.plan(q, k, v, call)
        density = plan.mask.density().mean()
        if self.config.refresh > 1:
            run.plans[layer, tick.branch, part] = Kept(tick.step, shape, plan.again or (lambda: plan), density)
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


def _layout(grid: TokenGrid) -> Layout:
    """The layout of calls that have exactly the tokens of the grid."""
    first = grid.text_position == "first"
    return Layout(*grid.shape, before=grid.text if first else 0, after=0 if first else grid.text)
