"""What is known of a run, a model and a call, and what is held of each branch: the plain data of step caches."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

Latents = "torch.Tensor | Sequence[torch.Tensor]"  # a text: PyTorch is imported when it is first used
"""What a transformer is given to denoise; of several tensors (pictures of several sizes, sound) the first decides."""


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
class BranchState:
    """What is held of one guidance branch in one transformer. A run starts with none.

    form: shapes of everything a call was given; a call of another form is not answered by what is held.
    """

    form: Hashable = None
    computed: int = -1  # step of the latest computed call
    dense: bool = True
    skips: int = 0  # reused calls since
    accumulated_diff: float = 0.0  # sum of signals since
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
        branch: name of the guidance state.
        noise: share of noise in the latents, from 0 to 1; None where the scheduler does not tell.
        tokens: where the picture is in packed latents ``[B, S, C]``; None for all of them.
    """

    step: int
    timestep: float | None
    branch: str
    noise: float | None = None
    tokens: slice | None = None


class Entry(NamedTuple):
    """One call of a transformer. ``why``: what forced it to be computed; ``signal``: what the decision looked at."""

    step: int
    branch: str
    part: int
    reused: bool
    why: str | None
    signal: float | None
    accumulated_diff: float
