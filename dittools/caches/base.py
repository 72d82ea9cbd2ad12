"""What a step cache decides, what it keeps of a computed step, and what it gives in place of one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, ClassVar

import torch

from dittools.caches.forecast import differences, forecast
from dittools.numbers import whole_steps

REUSES = ("delta", "output", "stack")
"""What is carried from a computed step to a reused one.

delta: output minus latents, so that the fresh latents come through. output: the output itself. stack: what all
blocks together added to their first input, as TeaCache and MagCache publish it: as large as all tokens, where the
other two are as large as the latents.
"""


@dataclass(frozen=True)
class Model:
    """What a profile may ask of a model.

    Args:
        transformer: class name.
        config: its configuration in plain values.
        experts: how many transformers share the run.
        frame_tokens: tokens in one frame, to choose between profiles of several sizes; 0 while not known.
        time_changes: ``(signal, timesteps) -> changes``: how much the model's time embedding changes from each
            step to the next, relative L1, first entry 0; None where the model's is not known. Signals are
            "embedding" and "projection" (after the layer that makes shifts and scales of it).
        pipeline: class name of the pipeline, where models of one shape are told apart by it.
        block_input: whether the first block's modulated input can be read.
        takes_over: ``timesteps -> step`` at which the second of two experts takes over; None where that is not known.
        channels: axis of the latents that holds their channels.
    """

    transformer: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    experts: int = 1
    frame_tokens: int = 0
    time_changes: Callable[[str, Sequence[float]], list[float] | None] = lambda signal, timesteps: None
    pipeline: str = ""
    block_input: bool = False
    takes_over: Callable[[Sequence[float]], int | None] = lambda timesteps: None
    channels: int = 1

    def __str__(self) -> str:
        sizes = [f"{name} {self.config[name]}" for name in ("num_layers", "in_channels") if name in self.config]
        two = [f"{self.experts} experts"] if self.experts > 1 else []
        return f"{self.transformer} ({', '.join(sizes + two)})" if sizes + two else self.transformer


@dataclass(frozen=True)
class Trajectory:
    """What is known before the first call of a run.

    Args:
        steps: how many the schedule has.
        timesteps: of each step, as the scheduler gives them; empty where there is no scheduler.
        forced: which steps are computed whatever the cache says: the first and last ones, those the attention
            keeps dense, and those at a switch between dense and sparse.
        model: see `Model`.
        sparse: whether the attention of this run is sparse in some steps.
        first: first step that runs: a pipeline may enter its schedule late.
    """

    steps: int
    timesteps: tuple[float, ...]
    forced: tuple[bool, ...]
    model: Model = field(default_factory=Model)
    sparse: bool = False
    first: int = 0


@dataclass(frozen=True)
class Shapes:
    """Sizes from which a cache's memory follows. `latents` and `tokens` count elements, not bytes.

    Args:
        latents: elements of one output of the transformer.
        tokens, width: of one feature map inside it.
        lanes: guidance branches that are called apart from one another.
        layers: self-attention layers.
        bytes: of one element.
    """

    latents: int
    tokens: int
    width: int
    lanes: int
    layers: int
    bytes: int = 2


@dataclass
class Lane:
    """What is held of one guidance branch in one transformer. A run starts with none.

    form: shapes of everything a call was given; a call of another form is not answered by what is held.
    """

    form: Hashable = None
    computed: int = -1  # step of the latest computed call
    dense: bool = True
    skips: int = 0  # reused calls since
    spent: float = 0.0  # sum of signals since
    factors: list[list[torch.Tensor]] = field(default_factory=list)  # [order][tensor of the output]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)  # what the signal needs
    numbers: dict[str, float] = field(default_factory=dict)
    channels: int | None = None  # that latents and output share; None before there was an output


@dataclass(frozen=True, eq=False)
class StepCall:
    """One call of a transformer, as a cache sees it.

    Args:
        step: index of the denoising step.
        timestep: the scheduler's; None where there is no scheduler.
        branch: name of the guidance lane.
        noise: share of noise in the latents, from 0 to 1; None where the scheduler does not tell.
    """

    step: int
    timestep: float | None
    branch: str
    noise: float | None = None


class Cache:
    """A cache: which steps are computed, and what stands in for the others. Subclasses are frozen dataclasses.

    It holds settings and no state: what belongs to a run lives in `Lane`s, which `dittools.reuse` keeps.

    Attributes:
        level: "output" reuses whole calls of the transformer, "attention" only what self-attention gave.
        watches: what the decision looks at: "nothing" (a mask made before sampling), "latents", or the first
            block's input or output ("block_input", "block_output").
        needs_noise: whether the decision needs the noise level of each step.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    level: ClassVar[str] = "output"
    watches: str = "nothing"
    needs_noise: ClassVar[bool] = False

    first: float | int
    last: float | int

    def bind(self, model: Model) -> Cache:
        """This cache with what it needs to know of the model. Raises ValueError when nothing is known."""
        return self

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
        first, last = whole_steps(self.first, steps - begins[0]), whole_steps(self.last, steps - begins[0])
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

    first: float | int = field(default=1, metadata={"help": "steps at the start always computed, a share or a count"})
    last: float | int = field(default=1, metadata={"help": "steps at the end always computed, a share or a count"})
    max_skips: int = field(default=0, metadata={"help": "most steps reused in a row; 0: no limit"})
    reuse: str = field(default="output", metadata={"help": "what is carried over: output, delta or stack"})
    order: int = field(default=0, metadata={"help": "0 carries it over as it is, 1 or more extrapolates it"})

    def __post_init__(self):
        for name in ("first", "last"):
            share_or_count(name, getattr(self, name), auto=_auto(self, name))
        if self.max_skips != "auto" or not _auto(self, "max_skips"):
            whole("max_skips", self.max_skips, 0)
        whole("order", self.order, 0, 4)
        choice("reuse", self.reuse, REUSES)

    # What is carried over

    def carry(
        self, lane: Lane, latents: Sequence[torch.Tensor], output: Sequence[torch.Tensor], call: StepCall
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
        lane.factors = differences(value, lane.factors, call.step - lane.computed, self.order)

    def stand_in(self, lane: Lane, latents: Sequence[torch.Tensor], call: StepCall) -> list[torch.Tensor]:
        """What the computed call would have given, about."""
        value = forecast(lane.factors, call.step - lane.computed)
        value = [
            tensor.clone() if tensor is kept else tensor for tensor, kept in zip(value, lane.factors[0], strict=True)
        ]
        if self.reuse == "delta":
            for now, given in zip(latents, value, strict=False):
                add_latents(given, now, 1)
        return value

    # What the decision looks at

    def signal(self, lane: Lane, seen: torch.Tensor, call: StepCall) -> float | None:
        """How much changed since the lane's last call; None while that cannot be told. Keeps what it compares with.

        Args:
            seen: what ``watches`` says: latents ``[B, C, ...]`` with the channels that the output speaks of (all of
                them before there was one), or tokens ``[B, S, width]``.
        """
        return None

    def learn(self, lane: Lane, latents: torch.Tensor, output: torch.Tensor) -> None:
        """Look at a computed call before its output is carried over.

        Args:
            latents, output: of one shape ``[B, C, ...]``, what of the picture they share; of any shapes where
                they cannot be compared.
        """

    def bytes_held(self, shapes: Shapes) -> int:
        """Bytes kept between calls."""
        one = shapes.tokens * shapes.width if self.reuse == "stack" else shapes.latents
        return shapes.bytes * shapes.lanes * (self.order + 1) * one


@dataclass(frozen=True)
class ThresholdCache(OutputCache):
    """A cache that reuses while the sum of changes stays below a threshold.

    Attributes:
        adds_up: whether signals are of one step each and are summed, or of all steps since the last computed one.
    """

    adds_up: ClassVar[bool] = True

    threshold: float = field(default=0.1, metadata={"help": "how much may change before a step is computed; 0: none"})

    def __post_init__(self):
        super().__post_init__()
        number("threshold", self.threshold, 0, auto=_auto(self, "threshold"))

    def never(self) -> bool:
        return self.threshold == 0

    def mask(self, run: Trajectory) -> list[bool] | None:
        return [True] * run.steps if self.never() else None


def accumulate(changes: Sequence[float], threshold: float, forced: Sequence[bool], max_skips: int) -> list[bool]:
    """Steps to compute when changes are known beforehand: those at which their sum reaches the threshold.

    Args:
        changes: of each step since the one before it. A change that is no number computes.
        forced: steps that are computed whatever the sum.
        max_skips: most steps in a row that are not; 0 sets no limit.
    """
    mask, spent, skips = [], 0.0, 0
    for change, must in zip(changes, forced, strict=True):
        spent += change
        compute = must or not spent < threshold or (max_skips > 0 and skips >= max_skips)
        spent, skips = (0.0, 0) if compute else (spent, skips + 1)
        mask.append(compute)
    return mask


def relative_change(now: torch.Tensor, before: torch.Tensor) -> float:
    """Mean absolute difference over the mean absolute value before; NaN or inf where that is no number."""
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


def _auto(cache: Cache, name: str) -> bool:
    """Whether an option may be left to the model's profile."""
    return next(f.default for f in dataclasses.fields(cache) if f.name == name) == "auto"


def number(name: str, value: Any, least: float, auto: bool = False) -> None:
    """Raises ValueError unless ``value`` is a finite number of at least ``least``."""
    if auto and value == "auto":
        return
    fine = isinstance(value, Real) and not isinstance(value, bool) and least <= value < float("inf")
    if not fine:
        raise ValueError(f"{name} must be a number of at least {least:g}, got {value!r}")


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError unless ``value`` is a whole number from ``least`` to ``most``."""
    fine = isinstance(value, Integral) and not isinstance(value, bool) and value >= least
    if not fine or (most is not None and value > most):
        limit = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number {limit}, got {value!r}")


def share_or_count(name: str, value: Any, auto: bool = False) -> None:
    """Raises ValueError unless ``value`` is a share of the run (float) or a count (int)."""
    if auto and value == "auto":
        return
    if isinstance(value, float) and 0 <= value <= 1:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} is a share of the run as a float in [0, 1], or a count as an int, got {value!r}")


def choice(name: str, value: Any, valid: Sequence[str]) -> None:
    """Raises ValueError unless ``value`` is one of ``valid``."""
    if value not in valid:
        raise ValueError(f"{name} must be {', '.join(valid[:-1])} or {valid[-1]}, got {value!r}")
