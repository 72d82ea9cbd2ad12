"""Which of a few candidates each head runs, so that all together meet a budget at the least loss."""

from __future__ import annotations

import numpy as np

UNITS = 200
"""Parts of a head's pairs in which budgets are counted: half a percent."""


def choose_modes(loss: np.ndarray, density: np.ndarray, budget: float) -> list[int]:
    """The candidate of each head that makes the sum of losses least, exactly, among those that meet the budget.

    Args:
        loss: ``[H, C]``, finite.
        density: ``[C]`` or ``[H, C]``, share of a head's pairs that a candidate computes.
        budget: mean density of the heads. Met to within half a percent where the candidates allow it, else as
            nearly as they do.

    Returns:
        An index of a candidate for each head.

    Source: multiple-choice knapsack; in Sparse-vDiT (arXiv 2506.03065, section 3.3) a fixed weight on sparsity stands
    in place of the budget.
    """
    heads, _ = loss.shape
    weight = np.rint(np.broadcast_to(density, loss.shape) * UNITS).astype(int)
    size = heads * UNITS + 1
    best, taken = np.full(size, np.inf), []
    best[0] = 0.0
    for h in range(heads):
        tried = np.full((loss.shape[1], size), np.inf)
        for c, w in enumerate(weight[h]):
            tried[c, w:] = best[: size - w] + loss[h, c]
        taken.append(tried.argmin(0))
        best = tried.min(0)
    # All of it means all of it: near would leave one head of many a little short of dense.
    spent = _spent(best, budget * heads * UNITS, heads if budget < 1 else 0)
    chosen = []
    for h in reversed(range(heads)):
        chosen.append(int(taken[h][spent]))
        spent -= weight[h, chosen[-1]]
    return chosen[::-1]


def _spent(best: np.ndarray, budget: float, slack: int) -> int:
    """The reachable amount to spend: the least loss near the budget, or the nearest where none is near."""
    away = np.abs(np.arange(len(best)) - budget)
    reachable = np.isfinite(best)
    near = reachable & (away <= slack)
    if near.any():
        return int(np.where(near, best, np.inf).argmin())
    return int(np.where(reachable, away, np.inf).argmin())
