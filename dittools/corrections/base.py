"""What a correction is given, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dittools.kernels.block_sparse.sample import Sample
from dittools.methods.base import AttentionCall, Plan, StayDense
from dittools.options import Options

if TYPE_CHECKING:  # a look into PyTorch, which flags alone are checked without
    Whole = Callable[[], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, eq=False)
class SparseCall:
    """A sparse call that ran, and what it ran on.

    Args:
        q, k, v: ``[B, S, H, D]`` in token order, after RoPE.
        plan: which pairs were computed.
        fresh: whether the plan was made for this call, and not kept from an earlier step.
        out, lse: what they gave: ``[B, S, H, D]``, and fp32 ``[B, H, S]`` in natural log.
        call: everything else about the call.
        state: belongs to the correction, this run, layer and branch; emptied when a forward is run again.
        sparsity: share of the pairs that a user asked to skip; ``call.sparsity`` is what the method was asked for
            (`Correction.sparsity_of_plans`).
        sample: what `Correction.sample` gave, which ``out`` and ``lse`` have already.
        join: adds the keys beside the call, which ``out`` and ``lse`` have already, to (output, lse) of ``q=`` some of
            its rows; None where there are none.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    plan: Plan
    fresh: bool
    out: torch.Tensor
    lse: torch.Tensor
    call: AttentionCall
    state: dict[Hashable, Any]
    sparsity: float
    sample: Sample | None = None
    join: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None


@dataclass(frozen=True, eq=False)
class Corrected:
    """The corrected output ``[B, S, H, D]``.

    Args:
        dense: it is exact and took all pairs, so the call counts as dense.
        computed: share of the skipped pairs that were computed after all, a number or a scalar tensor; they count.
    """

    out: torch.Tensor
    dense: bool = False
    notes: tuple[str, ...] = ()
    computed: torch.Tensor | float = 0.0


class Correction(Options):
    """Makes up for skipped pairs, whatever method skipped them. Subclasses are frozen dataclasses of their options.

    They hold settings and no state, as methods do.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @property
    def keeps_plans(self) -> int:
        """For how many steps a plan has to stay what it is; 1 asks for nothing."""
        return 1

    @property
    def differs_by_head(self) -> bool:
        """Whether `plan` gives other plans than the method's own, by what heads gain."""
        return False

    def sparsity_of_plans(self, sparsity: float, block_size: int) -> float:
        """What a method is asked to skip, so that with the pairs this computes ``sparsity`` of all are skipped."""
        return sparsity

    def reads(self, fresh: bool) -> tuple[str, ...]:
        """Which of q, k and v it looks at beyond the pairs that were computed, with a plan that is fresh or kept."""
        return ("q", "k", "v")

    def plan(self, make: Callable[..., Plan | StayDense], call: AttentionCall, whole: Whole, sparsity: float):
        """The method's plan of a call, which is ``make()``, or one made of several of its plans.

        Args:
            make: the method's answer; ``make(sparsity=...)`` at another sparsity than ``call.sparsity``.
            whole: gives q, k and v of all tokens.
            sparsity: as in `SparseCall`.

        Returns:
            A `Plan`, or the method's `StayDense`.
        """
        return make()

    def facts(self, call: AttentionCall) -> dict[str, torch.Tensor]:
        """What it decided of a call's plan, named as `Plan.facts`."""
        return {}

    def sample(self, plan: Plan, call: AttentionCall, sparsity: float) -> Sample | None:
        """Keys that the call itself takes in place of what the plan skips; None where there are none.

        Args:
            sparsity: as in `SparseCall`.
        """
        return None

    def correct(self, done: SparseCall) -> Corrected:
        """Correct one call."""
        raise NotImplementedError
