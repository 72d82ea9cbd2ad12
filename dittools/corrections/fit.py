"""Fit: an affine map from what a sparse call gave to what dense attention would have given, found on a few exact rows.

For each head the outputs o of r rows and their exact outputs o' give the map o + (o - mean o) W + mean o' - mean o with

    W = (X' X + ridge * mean of the diagonal of X' X * I)^-1 X' (Y - X)        X, Y: o and o' less their means

which is applied to all rows. The shrinkage, towards leaving the output as it is, is what makes so few rows enough: with
next to none the map fits the rows and hurts the others. Source: the residual that SparsePR fits; ridge and rows ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from dittools.corrections.base import Corrected, Correction, SparseCall
from dittools.corrections.centroids import Centroids
from dittools.corrections.rettention import Rettention
from dittools.corrections.sampled import Sampled
from dittools.kernels.block_sparse.sample import Sample
from dittools.methods.base import AttentionCall, Plan, StayDense
from dittools.options import option
from dittools.row_errors import drawn_rows, exact_rows

if TYPE_CHECKING:
    from dittools.corrections.base import Whole

_SALT = 0xF17
_UNDER: dict[str, type[Correction]] = {one.name: one for one in (Centroids, Sampled, Rettention)}


@dataclass(frozen=True)
class Fit(Correction):
    """An affine map a head, fitted in each call on exact rows, on top of no correction or of another one."""

    name: ClassVar[str] = "fit"
    summary: ClassVar[str] = "an affine map of each head's output, fitted on a few exact rows"

    rows: int = option(128, "query rows of a call that are computed exactly", min=8)
    ridge: float = option(1.0, "shrinkage, times the mean of the diagonal", above=0)
    on: str = option("none", "the correction whose output is mapped", choices=("none", *_UNDER))

    @property
    def under(self) -> Correction | None:
        """The correction that comes first, with its own defaults."""
        return None if self.on == "none" else _UNDER[self.on]()

    @property
    def keeps_plans(self) -> int:
        return 1 if self.under is None else self.under.keeps_plans

    def sparsity_of_plans(self, sparsity: float, block_size: int) -> float:
        return sparsity if self.under is None else self.under.sparsity_of_plans(sparsity, block_size)

    def plan(self, make: Callable[..., Plan | StayDense], call: AttentionCall, whole: Whole, sparsity: float):
        return make() if self.under is None else self.under.plan(make, call, whole, sparsity)

    def facts(self, call: AttentionCall) -> dict[str, torch.Tensor]:
        return {} if self.under is None else self.under.facts(call)

    def sample(self, plan: Plan, call: AttentionCall, sparsity: float) -> Sample | None:
        return None if self.under is None else self.under.sample(plan, call, sparsity)

    def correct(self, done: SparseCall) -> Corrected:
        first = Corrected(done.out) if self.under is None else self.under.correct(done)
        if first.dense:
            return first
        call, tokens = done.call, done.q.shape[1]
        rows = drawn_rows(done.q, done.plan, self.rows, call.generator, _SALT)
        how = {"scale": call.scale, "block_size": call.block_size, "join": done.join}
        exact = exact_rows(done.q, done.k, done.v, rows, **how)
        out = mapped(first.out, rows, exact, self.ridge)
        share = len(rows) / tokens
        notes = (*first.notes, f"fit: each head's output was mapped by what {len(rows)} exact rows say")
        return dataclasses.replace(first, out=out, notes=notes, computed=share + (1 - share) * first.computed)


def mapped(out: torch.Tensor, rows: torch.Tensor, exact: torch.Tensor, ridge: float) -> torch.Tensor:
    """The map, found on some rows and applied to all. Nothing waits for the device.

    Args:
        out: ``[B, S, H, D]``. rows: int64 ``[r]``. exact: ``[B, r, H, D]``, what these should be.
        ridge: shrinkage, times the mean of the diagonal.

    Returns:
        ``[B, S, H, D]`` in the dtype of out.
    """
    given, wanted = (x.transpose(1, 2).float() for x in (out.index_select(1, rows), exact))  # [B, H, r, D]
    means = given.mean(2, keepdim=True), wanted.mean(2, keepdim=True)
    x, y = given - means[0], wanted - means[1]
    gram = x.transpose(-1, -2) @ x  # [B, H, D, D]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal += ridge * diagonal.mean(-1, keepdim=True) + torch.finfo(torch.float32).tiny
    # The factor is of a matrix that is positive definite by its ridge: nothing to ask the device about.
    factor, _ = torch.linalg.cholesky_ex(gram)
    weight = torch.cholesky_solve(x.transpose(-1, -2) @ (y - x), factor)  # [B, H, D, D]
    shift = means[1] - means[0] - means[0] @ weight  # [B, H, 1, D]
    added = out.transpose(1, 2) @ weight.to(out.dtype) + shift.to(out.dtype)
    return out + added.transpose(1, 2)
