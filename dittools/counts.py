"""What one forward counted, as the ranks that made it tell it to those that did not, or made the other half of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from dittools.budget_check import BudgetCheck
from dittools.run import Call, KeptOf, Run


@dataclass(frozen=True)
class Counts:
    """Of one forward.

    Attributes:
        calls, facts, fallbacks, plans, kernel_reasons, dense_from, costs: as a `Run` has them; those of this forward.
        reused: attention calls that a cache saved. came: attention calls of each layer.
        kept: of its sparse calls, as ``Run.kept_by_rank`` has it.
        shares: what new plans keep of this rank's samples, where others have the rest, by `BudgetCheck`.
        notes: that are new. cache_notes, attention_reused: those of the step cache.
    """

    calls: list[Call]
    facts: list[tuple[int, dict[str, torch.Tensor]]]
    fallbacks: Counter[str]
    plans: tuple[int, int]
    reused: int
    costs: dict[int, torch.Tensor]
    kept: list[tuple[list[float], torch.Tensor]]
    shares: list[list[torch.Tensor]]
    notes: list[str]
    kernel_reasons: dict[str, str]
    dense_from: set[tuple[int, int]]
    came: dict[int, int]
    cache_notes: list[str]
    attention_reused: list[Any]


class Counting:
    """Follows what a run counts, from here to the end of the forward that begins.

    Args:
        run: of the forward.
    """

    def __init__(self, run: Run):
        self._run, self.mark = run, run.mark()
        self._reused, self._kept, self._notes = run.reused_calls, len(run.kept_by_rank), len(run.notes)
        self._costs, run.costs = run.costs, {}
        self._attention = 0 if run.reuse is None else len(run.reuse.attention_reused)

    def cancel(self) -> None:
        """The forward is not made."""
        self._run.costs = self._costs

    def end(self, came: dict[int, int]) -> Counts:
        """What was counted since; costs of heads are added to those from before."""
        run, (calls, facts, fallbacks, plans) = self._run, self.mark
        new = run.calls[calls:]
        if run.ranks.alone and (sparse := [call for call in new if call.density is not None]):
            # As if gathered from one rank, which has all heads.
            device = torch.as_tensor(sparse[0].density).device
            numbers = [torch.as_tensor(x, dtype=torch.float32).to(device) for x in (1.0, *(c.density for c in sparse))]
            run.kept_by_rank.append(([call.pairs for call in sparse], torch.stack(numbers)[None]))
        costs, run.costs = run.costs, self._costs
        add_costs(run, costs)
        return Counts(
            new,
            run.facts[facts:],
            run.fallbacks - fallbacks,
            (run.plans_reused - plans[0], run.plans_shared - plans[1]),
            run.reused_calls - self._reused,
            costs,
            run.kept_by_rank[self._kept :],
            [check.shares() for check in _checks(run)],
            list(run.notes)[self._notes :],
            dict(run.kernel_reasons),
            set(run.dense_from),
            came,
            [] if run.reuse is None else list(run.reuse.notes),
            [] if run.reuse is None else list(run.reuse.attention_reused)[self._attention :],
        )


def add_costs(run: Run, costs: dict[int, torch.Tensor]) -> None:
    """Add what heads of some layers cost."""
    for layer, cost in costs.items():
        run.costs[layer] = run.costs[layer] + cost if layer in run.costs else cost


def add_forward(run: Run, found: Counts) -> None:
    """Count a forward that other ranks made."""
    run.calls += found.calls
    run.facts += found.facts
    run.fallbacks += found.fallbacks
    run.plans_reused += found.plans[0]
    run.plans_shared += found.plans[1]
    run.reused_calls += found.reused
    _add(run, found)


def add_half(run: Run, mark: tuple, found: Counts) -> None:
    """Make of what this rank counted of its samples, since ``mark``, what was counted of all.

    Raises:
        RuntimeError: when the others did not make the same calls.
    """
    mine = run.calls[mark[0] :]
    if [call[:2] for call in mine] != [call[:2] for call in found.calls]:
        raise RuntimeError("ranks that share a batch made other attention calls: the model reads what is in it")
    run.calls[mark[0] :] = [_both(*pair) for pair in zip(mine, found.calls, strict=True)]
    for check, others in zip(_checks(run), found.shares, strict=True):
        both = [(one + other.to(one.device)) / 2 for one, other in zip(check.shares(), others, strict=True)]
        run.notes.update(dict.fromkeys(check.settle(both)))
    run.facts += found.facts
    run.fallbacks |= found.fallbacks + mark[2]
    _add(run, found)


def _add(run: Run, found: Counts) -> None:
    add_costs(run, found.costs)
    run.kept_elsewhere += found.kept
    run.notes.update(dict.fromkeys(found.notes))
    run.kernel_reasons = found.kernel_reasons | run.kernel_reasons
    run.dense_from |= found.dense_from
    if run.reuse is not None:
        run.reuse.notes.update(dict.fromkeys(found.cache_notes))
        run.reuse.attention_reused.update(dict.fromkeys(found.attention_reused))


def _checks(run: Run) -> list[BudgetCheck]:
    return [cache[BudgetCheck] for cache in run.caches.values() if BudgetCheck in cache]


def _both(one: Call, other: Call) -> Call:
    """A call of some samples and one of the others as one."""
    pairs = one.pairs + other.pairs
    if one.density is None and other.density is None:
        return one._replace(pairs=pairs)
    weights = one.pairs / pairs, other.pairs / pairs
    parts = tuple(_all_lanes(*pair) for pair in zip(one.parts, other.parts, strict=True))
    own = None if one.own is None or other.own is None else _mean((one.own, other.own), weights)
    error = None if one.error is None or other.error is None else one.error + other.error.to(one.error.device)
    density = _mean([1.0 if call.density is None else call.density for call in (one, other)], weights)
    kernel = one.kernel or other.kernel
    return one._replace(pairs=pairs, density=density, kernel=kernel, parts=parts, own=own, error=error)


def _all_lanes(one: KeptOf, other: KeptOf) -> KeptOf:
    lanes = one.lanes + other.lanes
    kept = _mean((one.kept, other.kept), (one.lanes / lanes, other.lanes / lanes))
    return one._replace(lanes=lanes, kept=kept, beside=one.beside + other.beside)


def _mean(values: Sequence[torch.Tensor | float], weights: Sequence[float]) -> torch.Tensor:
    one, other = (torch.as_tensor(value, dtype=torch.float32) for value in values)
    return weights[0] * one + weights[1] * other.to(one.device)
