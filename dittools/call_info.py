"""What the runtime is told: of a transformer forward before it runs, and of one attention call in it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from dittools.caches.state import Latents
from dittools.ranks import ALL, ALONE, Heads, Ranks
from dittools.timesteps import Reading
from dittools.tokens import Layout, TokenGrid

if TYPE_CHECKING:
    from dittools.branches import Branches
    from dittools.kernels.masks.block_mask import BlockMask
    from dittools.methods.base import Plan
    from dittools.query_rows import QueryRows
    from dittools.run import Run
    from dittools.sequence import SubCall


class Layer(NamedTuple):
    """A self-attention layer: its name, and how deep it is in its own transformer (from 0)."""

    name: str
    depth: int


@dataclass(frozen=True, eq=False)
class Timing:
    """When a forward is, as `dittools.clock.StepClock.observe` takes it.

    Args:
        timestep: what the transformer is given, or what reads it in the schedule's units.
        timesteps: the schedule ``[steps]``, the very tensor; None when there is none.
        branch: name of the guidance branch; None where the pipeline names none.
        step_index: index in the schedule, where the caller knows it.
        steps: one more than the last step that runs; the schedule's length by default.
        first: first step that runs, where the caller knows it.
    """

    timestep: torch.Tensor | float | Callable[[], Reading]
    timesteps: torch.Tensor | None
    branch: str | None = None
    step_index: int | None = None
    steps: int | None = None
    first: int | None = None


@dataclass(frozen=True, eq=False)
class Reusable:
    """What a step cache needs to reuse a forward.

    Args:
        latents: what the transformer is given to denoise.
        noise: (step, steps) -> share of noise in them, where it is known.
        why_compute: a reason the caller knows for which this call cannot be reused, or what tells it for a run.
        form: what must be equal of a call and of the one that is reused for it; by default the latents' shapes.
        tokens: where the picture is in packed latents ``[B, S, C]``; None for all of them.
    """

    latents: Latents
    noise: Callable[[int, int], float | None] | None = None
    why_compute: str | Callable[[Run], str | None] | None = None
    form: Hashable = None
    tokens: slice | None = None


@dataclass(frozen=True, eq=False)
class CallInfo:
    """One forward of a transformer.

    Args:
        timing: when it is.
        grid: its token layout; None where it is not known, and then its calls are dense.
        device, dtype: of the latents.
        part: which transformer, 0 but for a second expert.
        layout: where the picture is in the sequence of each attention call, when that may hold other tokens than the
            grid.
        why_no_grid: the reason where there is no grid, in one line.
        reusable: for a step cache; None where the call cannot be reused.
        boundary: timestep below which the second transformer runs, where there are two.
        life: dies when the caller that has the loop returns or raises; what the run holds goes with it.
        source: identity of the scheduler: with other timesteps it has left its earlier run.
        ranks: that make this forward together.
        branches: who makes which guidance branch, where groups of ranks share them.
    """

    timing: Timing
    grid: TokenGrid | None
    device: torch.device
    dtype: torch.dtype
    part: int = 0
    layout: Layout | None = None
    why_no_grid: str | None = None
    reusable: Reusable | None = None
    boundary: float | None = None
    life: weakref.ref | None = None
    source: int | None = None
    ranks: Ranks = ALONE
    branches: Branches | None = None


class SharedTokens(Protocol):
    """The tokens of a call of which other ranks have some, and how to get at theirs.

    Attributes:
        ranks: those among whom the tokens are shared; all of them have the same heads.
        queries: of this rank, ``[B, n, H, D]``.
    """

    ranks: Ranks
    queries: torch.Tensor

    def whole(self, *names: str) -> None:
        """Fill in the tokens of others in those of "q", "k" and "v" that are named."""

    def rows(self, piece: SubCall) -> QueryRows:
        """This rank's queries among those of a piece of the call."""

    def fetch(self, plan: Plan) -> None:
        """Fill in the keys and values of others that a plan of the whole call wants for this rank's queries."""

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's tokens of ``[B, S, ...]``."""


class AttentionInputs(NamedTuple):
    """One self-attention call.

    Args:
        layer: index of the layer.
        q, k, v: ``[B, S, H, D]`` after RoPE.
        scale: factor on the logits.
        mask: as PyTorch's attention takes it, or None.
        heads: which of the layer's heads these are.
        spread: ranks over which the tokens are spread, where they are those of one of them.
        shared: where q, k and v have all tokens, and those of other ranks hold zeros until they are asked for.
        own: the block mask that the model brings itself, for a method that takes it.
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scale: float
    mask: torch.Tensor | None = None
    heads: Heads = ALL
    spread: int = 1
    shared: SharedTokens | None = None
    own: BlockMask | None = None

    @property
    def alone(self) -> bool:
        """Whether no other rank takes part."""
        return self.heads.alone and self.shared is None

    @property
    def pairs(self) -> float:
        """Query-key pairs of all samples, heads and ranks."""
        lanes = self.q.shape[0] * self.heads.total(self.q.shape[2])
        return float(lanes * self.q.shape[1] * self.k.shape[1] * self.spread**2)
