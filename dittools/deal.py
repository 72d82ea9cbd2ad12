"""Which rank computes which heads, where heads of a layer take different time.

Under Ulysses every rank attends over all tokens with some of the heads, and a layer is done when its slowest rank is.
Where a budget is shared by heads (a nucleus, a layer's budget, a profile) heads differ in cost, and heads in their
natural order leave ranks waiting. A `Deal` gives every rank as many heads as it has anyway, but other ones. What a head
cost in one step serves for the next, so a deal is made between steps and asks no rank to wait in a call.

Source: longest processing time first with equal heads a rank, as in DSV (arXiv 2502.07590) and db-SP
(arXiv 2511.23113); the snake of xDiT (`xfuser/core/sparge_attention/head_balance.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dittools.naming import unknown


@dataclass(frozen=True)
class Deal:
    """The heads of one layer, dealt to ranks: ``Heads(ranks, deal.heads)`` of `dittools.ranks` shares a call so.

    Args:
        heads: heads of each rank, in ascending order; a rank has none where there are more ranks than heads.
        loads: cost of each rank, the sum over its heads.
    """

    heads: tuple[tuple[int, ...], ...]
    loads: tuple[float, ...]

    @property
    def natural(self) -> bool:
        """Whether heads stand as they are: then there is nothing to permute."""
        return all(head == place for place, head in enumerate(self.order))

    @property
    def order(self) -> tuple[int, ...]:
        """All heads, those of rank 0 first: ``x[:, :, order]`` before the exchange, ``[B, S, H, D]``."""
        return tuple(head for some in self.heads for head in some)

    @property
    def back(self) -> tuple[int, ...]:
        """The places of heads in `order`: ``y[:, :, back]`` after the exchange is in natural order again."""
        places = [0] * len(self.order)
        for place, head in enumerate(self.order):
            places[head] = place
        return tuple(places)

    @property
    def balance(self) -> float:
        """Cost of the slowest rank over the mean of all: how much longer attention takes than it could, 1 at best."""
        total = math.fsum(self.loads)
        return max(self.loads) * len(self.loads) / total if total > 0 else 1.0


def shares(heads: int, ranks: int) -> list[int]:
    """Heads of each rank, as even as they divide; the first ranks have one more.

    Raises:
        ValueError: for less than one head or rank.
    """
    if heads < 1 or ranks < 1:
        raise ValueError(f"heads and ranks must be at least 1, got {heads} heads and {ranks} ranks")
    return [heads // ranks + (rank < heads % ranks) for rank in range(ranks)]


def deal(costs: Sequence[float], ranks: int, way: str = "greedy", least_gain: float = 0.01) -> Deal:
    """Deal heads to ranks by what they cost; the slowest rank is never slower than in the natural order.

    Args:
        costs: of each head in natural order, in any unit: the density of its mask in the last step times the pairs of
            a head, added up over samples and guidance branches that one call holds.
        ranks: that share the heads of a call, the Ulysses degree; ring ranks of one Ulysses rank have the same heads.
        way: "greedy" gives every head, the costliest first, to the rank with the least cost so far that has room;
            "snake" goes along the ranks and back again; "natural" leaves heads as they are.
        least_gain: by how much the slowest rank must become faster, as a share, for heads to be permuted at all.

    Raises:
        ValueError: for an unknown way, a cost that is negative or not finite, or less than one head or rank.
    """
    if way not in WAYS:
        raise ValueError(unknown("way to deal heads", way, WAYS))
    for head, cost in enumerate(costs):
        if not (math.isfinite(cost) and cost >= 0):
            raise ValueError(f"the cost of a head must be a number of at least 0, got {cost} for head {head}")
    room = shares(len(costs), ranks)
    natural = _dealt(_natural(costs, room), costs)
    found = _dealt(WAYS[way](costs, room), costs)
    better = max(found.loads) < max(natural.loads) * (1 - least_gain)
    return found if better else natural


def _dealt(heads: Sequence[Sequence[int]], costs: Sequence[float]) -> Deal:
    ordered = tuple(tuple(sorted(some)) for some in heads)
    return Deal(ordered, tuple(math.fsum(costs[head] for head in some) for some in ordered))


def _natural(costs: Sequence[float], room: Sequence[int]) -> list[list[int]]:
    heads = iter(range(len(costs)))
    return [[next(heads) for _ in range(count)] for count in room]


def _greedy(costs: Sequence[float], room: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in room]
    loads = [0.0] * len(room)
    for head in _costliest_first(costs):
        free = [rank for rank, some in enumerate(found) if len(some) < room[rank]]
        # Of ranks with equal loads the one of fewer heads, which takes nothing cheap beside a costly one.
        rank = min(free, key=lambda rank: (loads[rank], room[rank]))
        found[rank].append(head)
        loads[rank] += costs[head]
    return found


def _snake(costs: Sequence[float], room: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in room]
    heads = iter(_costliest_first(costs))
    for turn in range(max(room)):
        ranks = [rank for rank, count in enumerate(room) if count > turn]
        for rank in ranks if turn % 2 == 0 else reversed(ranks):
            found[rank].append(next(heads))
    return found


def _costliest_first(costs: Sequence[float]) -> list[int]:
    return sorted(range(len(costs)), key=lambda head: -costs[head])


WAYS: dict[str, Callable[[Sequence[float], Sequence[int]], list[list[int]]]] = {
    "greedy": _greedy,
    "snake": _snake,
    "natural": _natural,
}
