"""How far sparse calls are from dense ones, by a few query rows that are computed over all keys as well.

Of a call some rows are drawn, one in each of as many equal stretches of its tokens, and their exact outputs o' are set
against what the call gave them, o: e = sum |o - o'|^2 and n = sum |o'|^2 over heads and D for each row. The relative
error of calls together is sqrt(sum e / sum n), a ratio of means over a sample of rows, and what the sample leaves open
of it follows from how much e - (sum e / sum n) n varies from row to row (Cochran, Sampling Techniques, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dittools.json_numbers import number
from dittools.kernels.block_sparse.dispatch import block_sparse_attention
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.upload import upload
from dittools.selection.sampled import stratified_rows

if TYPE_CHECKING:
    from dittools.methods.base import Plan
    from dittools.run import Call

_SALT = 0x0E4404


class Estimate(NamedTuple):
    """A relative error, and the standard error that a sample of rows leaves it with."""

    error: float
    uncertainty: float


def drawn_rows(q: torch.Tensor, plan: Plan, count: int, generator: torch.Generator, salt: int = _SALT) -> torch.Tensor:
    """Tokens to compute exactly, of those that a plan attends for: int64 ``[count or fewer]``, the same for each call
    of a layer and step.

    Args:
        q: ``[B, S, H, D]``.
        generator: of the call, whose seed alone is used: what a method draws of it stays as it is.
        salt: tells one use of such rows from another.
    """
    own = torch.Generator().manual_seed((generator.initial_seed() ^ salt) % (1 << 63))
    tokens = q.shape[1] if plan.own is None else plan.own.count
    rows = upload(stratified_rows(tokens, count, own), q.device)
    return rows if plan.own is None else plan.own.tokens[rows]


def sums_of_rows(given: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """What `estimate` makes a relative error of. Nothing waits for the device.

    Args:
        given: rows of what a call gave, ``[B, r, H, D]``. exact: `exact_rows` of it.

    Returns:
        fp32 ``[6]``: how many rows, and the sums of e, n, e^2, e n and n^2 over them.
    """
    exact = exact.float()
    wrong = (given.float() - exact).square().sum((2, 3)).flatten()
    whole = exact.square().sum((2, 3)).flatten()
    terms = (torch.ones_like(wrong), wrong, whole, wrong * wrong, wrong * whole, whole * whole)
    return torch.stack(terms).sum(1)


def exact_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    *,
    scale: float,
    block_size: int,
    join: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
) -> torch.Tensor:
    """Attention of some queries over all keys: ``[B, r, H, D]``.

    Args:
        q, k, v: ``[B, S, H, D]``.
        rows: int64 ``[r]``, tokens.
        scale: factor on the logits. block_size: of tiles of the kernel that computes them.
        join: adds keys beside these to (output, lse) of ``q=`` some rows.
    """
    queries = q.index_select(1, rows)
    mask = BlockMask.full(Partition(len(rows), block_size), Partition(k.shape[1], block_size), q.device)
    exact, lse = block_sparse_attention(queries, k, v, mask, scale=scale, return_lse=True)
    return exact if join is None else join(exact, lse, q=queries)[0]


def estimate(sums: Sequence[float]) -> Estimate | None:
    """The relative error of calls by what `sums_of_rows` gave of them, added up; None where nothing was computed."""
    rows, wrong, whole, wrong2, both, whole2 = sums
    if not rows or not whole > 0:
        return None
    ratio = max(wrong, 0.0) / whole
    left = max(wrong2 - 2 * ratio * both + ratio * ratio * whole2, 0.0) / (whole * whole)
    spread = math.sqrt(left * rows / (rows - 1)) if rows > 1 else math.inf
    error = math.sqrt(ratio)
    return Estimate(error, spread / (2 * error) if error else 0.0)


def together(cells: Iterable[Estimate]) -> Estimate | None:
    """The root of the mean square of relative errors; None where there are none."""
    cells = list(cells)
    if not cells:
        return None
    error = math.sqrt(sum(cell.error**2 for cell in cells) / len(cells))
    spread = math.sqrt(sum((2 * cell.error * cell.uncertainty) ** 2 for cell in cells)) / len(cells)
    return Estimate(error, spread / (2 * error) if error else 0.0)


def facts(calls: Sequence[Call], steps: int, layers: int, rows: int) -> dict[str, Any] | None:
    """The `attention_error` entry of a run record; None where no call was looked at. Waits for the device once.

    ``overall``, ``per_step`` and ``per_layer`` are roots of the mean square over cells, which are all sparse calls of a
    layer in a step; ``cells`` has [step, layer, error, uncertainty] of each. A call that ran dense is in none.
    """
    known = [call for call in calls if call.error is not None]
    if not known:
        return None
    numbers = torch.stack([call.error for call in known]).double().tolist()  # type: ignore[arg-type]
    added: dict[tuple[int, int], list[float]] = {}
    for call, sums in zip(known, numbers, strict=True):
        place = call.step, call.layer
        added[place] = [a + b for a, b in zip(added.get(place, [0.0] * 6), sums, strict=True)]
    found = {place: cell for place, sums in sorted(added.items()) if (cell := estimate(sums)) is not None}

    def of(which: int, count: int) -> list[float | None]:
        every = [together(cell for place, cell in found.items() if place[which] == one) for one in range(count)]
        return [None if one is None else number(one.error) for one in every]

    overall = together(found.values())
    return {
        "rows": rows,
        "overall": None if overall is None else number(overall.error),
        "uncertainty": None if overall is None else number(overall.uncertainty),
        "per_step": of(0, steps),
        "per_layer": of(1, layers),
        "cells": [[*place, number(cell.error), number(cell.uncertainty)] for place, cell in found.items()],
    }
