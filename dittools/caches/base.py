"""What a step cache decides, what it keeps of a computed step, and what it gives in place of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.caches.forecast import differences, forecast
from dittools.caches.options import cooldown_option, max_skips_option, option, threshold_option, warmup_option
from dittools.caches.output_reuse import OutputReuse
from dittools.caches.state import BranchState, Model, Shapes, StepCall, Trajectory
from dittools.caches.step_cache import StepCache
from dittools.json_numbers import whole_steps
from dittools.options import Options

REUSES = ("delta", "output", "stack")
"""What is carried from a computed step to a reused one.

delta: output minus latents, so that the fresh latents come through. output: the output itself. stack: what all
blocks together added to their first input, as TeaCache and MagCache publish it: as large as all tokens, where the
other two are as large as the latents.
"""


class Cache(Options):
    """A cache: which steps are computed, and what stands in for the others. Subclasses are frozen dataclasses.

    It holds settings and no state: what belongs to a run lives in the `BranchState`s of a `StepCache`.

    Attributes:
        level: "output" reuses whole calls of the transformer, "attention" only what self-attention gave.
        signal_source: what the decision looks at: "nothing" (a mask made before sampling), "latents", or the first
            block's input or output ("block_input", "block_output").
        needs_noise: whether the decision needs the noise level of each step.
        to_reuse_less: what a user does to reuse fewer steps.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    level: ClassVar[str] = "output"
    signal_source: str = "nothing"
    needs_noise: ClassVar[bool] = False
    to_reuse_less: ClassVar[str] = "compute more steps"

    renamed: ClassVar[Mapping[str, str]] = {
        "first": "warmup_steps",
        "last": "cooldown_steps",
        "max_skips": "max_consecutive_skips",
        "order": "taylor_order",
    }

    warmup_steps: float | int
    cooldown_steps: float | int

    def bind(self, model: Model) -> Cache:
        """This cache with what it needs to know of the model. Raises ValueError when nothing is known."""
        return self

    def begin_run(self, run: Trajectory) -> StepCache:
        """This cache at work in one run."""
        raise NotImplementedError

    def check_files(self, steps: int | None = None) -> None:
        """Read what the options name, before a model is there to `bind`.

        Args:
            steps: of the run; None where that is not known yet.

        Raises:
            ValueError: when a file cannot be read, or holds nothing for this cache or number of steps.
        """

    def kept(self, steps: int, begins: Sequence[int]) -> list[bool]:
        """Steps that are computed whatever changes: the first and the last ones.

        Args:
            steps: of the run.
            begins: the first step that runs, and where it is known the one at which a second expert takes over.
        """
        first, last = (whole_steps(some, steps - begins[0]) for some in (self.warmup_steps, self.cooldown_steps))
        return [not begins[0] + first <= step < steps - last for step in range(steps)]

    def mask(self, run: Trajectory) -> list[bool] | None:
        """Which steps to compute, known before the first call; None when signals decide. Forced steps are True."""
        raise NotImplementedError

    def why_not(self, run: Trajectory) -> list[str]:
        """What a user should know of this run, a line each."""
        return []

    def never(self) -> bool:
        """Whether these settings reuse nothing at all."""
        return False


@dataclass(frozen=True)
class OutputCache(Cache):
    """A cache that reuses whole calls of the transformer."""

    warmup_steps: float | int = warmup_option(1)
    cooldown_steps: float | int = cooldown_option(1)
    max_consecutive_skips: int = max_skips_option(0)
    reuse: str = option("output", "what is carried over", choices=REUSES)
    taylor_order: int = option(0, "0 carries it over as it is, 1 or more extrapolates it", min=0, max=4)

    def begin_run(self, run: Trajectory) -> OutputReuse:
        return OutputReuse(self, run)

    # What is carried over

    def update(
        self, state: BranchState, latents: Sequence[torch.Tensor], output: Sequence[torch.Tensor], call: StepCall
    ) -> None:
        """Keep what a later step needs of this computed one.

        Args:
            latents: what went in; each is that of the output at its place.
            output: the transformer's tensors; with reuse "stack" the one tensor that its blocks added.

        Raises:
            ValueError: for "delta", when an output cannot be compared with its latents.
        """
        # Copies: the pipeline may write into what it was given.
        value = [tensor.clone() for tensor in output]
        if self.reuse == "delta":
            for now, kept in zip(latents, value, strict=False):
                add_latents(kept, now, -1)
        state.factors = differences(value, state.factors, call.step - state.computed, self.taylor_order)

    def predict(self, state: BranchState, latents: Sequence[torch.Tensor], call: StepCall) -> list[torch.Tensor]:
        """What the computed call would have given, about."""
        value = forecast(state.factors, call.step - state.computed)
        value = [
            tensor.clone() if tensor is kept else tensor for tensor, kept in zip(value, state.factors[0], strict=True)
        ]
        if self.reuse == "delta":
            for now, given in zip(latents, value, strict=False):
                add_latents(given, now, 1)
        return value

    # What the decision looks at

    def signal(self, state: BranchState, seen: torch.Tensor, call: StepCall) -> float | None:
        """How much changed since the branch's last call; None while that cannot be told. Keeps what it compares with.

        Args:
            seen: what ``signal_source`` names: latents ``[B, C, ...]`` with the channels that the output speaks of
                (all of them before there was one), or tokens ``[B, S, width]``.
        """
        return None

    def learn(self, state: BranchState, latents: torch.Tensor, output: torch.Tensor) -> None:
        """Look at a computed call before its output is carried over.

        Args:
            latents, output: of one shape ``[B, C, ...]``, what of the picture they share; of any shapes where
                they cannot be compared.
        """

    def bytes_held(self, shapes: Shapes) -> int:
        """Bytes kept between calls."""
        one = shapes.tokens * shapes.width if self.reuse == "stack" else shapes.latents
        return shapes.bytes * shapes.lanes * (self.taylor_order + 1) * one


@dataclass(frozen=True)
class ThresholdCache(OutputCache):
    """A cache that reuses while the sum of changes stays below a threshold.

    Attributes:
        adds_up: whether signals are of one step each and are summed, or of all steps since the last computed one.
    """

    adds_up: ClassVar[bool] = True
    to_reuse_less: ClassVar[str] = "lower the threshold"

    threshold: float = threshold_option(0.1)

    def never(self) -> bool:
        return self.threshold == 0

    def add(self, state: BranchState, signal: float) -> None:
        """Take a signal into the sum that the threshold is held against."""
        state.accumulated_diff = signal + (state.accumulated_diff if self.adds_up else 0.0)

    def enough(self, state: BranchState) -> bool:
        """Whether so much has changed that the step has to be computed."""
        return reaches(state.accumulated_diff, self.threshold)

    def mask(self, run: Trajectory) -> list[bool] | None:
        return [True] * run.steps if self.never() else None


def reaches(diff: float, threshold: float) -> bool:
    """Whether a difference reaches the threshold, and its step is computed. One that is no number does."""
    return not diff < threshold


def accumulate(changes: Sequence[float], threshold: float, forced: Sequence[bool], max_skips: int) -> list[bool]:
    """Steps to compute when changes are known beforehand: those at which their sum reaches the threshold.

    Args:
        changes: of each step since the one before it. A change that is no number computes.
        forced: steps that are computed whatever the sum.
        max_skips: most steps in a row that are not; 0 sets no limit.
    """
    mask, diff, skips = [], 0.0, 0
    for change, must in zip(changes, forced, strict=True):
        diff += change
        compute = must or reaches(diff, threshold) or (max_skips > 0 and skips >= max_skips)
        diff, skips = (0.0, 0) if compute else (diff, skips + 1)
        mask.append(compute)
    return mask


def relative_change(now: torch.Tensor, before: torch.Tensor | None) -> float | None:
    """Mean absolute difference over the mean absolute value before; NaN or inf where that is no number.

    None without a tensor of this shape before.
    """
    if before is None or before.shape != now.shape:
        return None
    difference, size = (now.float() - before.float()).abs().mean(), before.float().abs().mean()
    return float(difference / size)


def add_latents(output: torch.Tensor, latents: torch.Tensor, times: int) -> None:
    """Add the latents, so many times, to the part of the output that speaks of the same.

    That is the first entries along the one axis in which they differ: conditioning channels behind the latents are
    left out, and learned variances behind the output are left alone.

    Raises:
        ValueError: when the shapes differ in another way.
    """
    differ = [dim for dim, (a, b) in enumerate(zip(latents.shape, output.shape, strict=False)) if a != b]
    if latents.ndim != output.ndim or len(differ) > 1:
        raise ValueError(
            f"reuse=delta needs an output of the latents' shape, and {list(latents.shape)} give "
            f"{list(output.shape)}: use reuse=output"
        )
    for dim in differ:
        size = min(latents.shape[dim], output.shape[dim])
        latents, output = latents.narrow(dim, 0, size), output.narrow(dim, 0, size)
    output.add_(latents, alpha=times)
