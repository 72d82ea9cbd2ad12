"""A bound on the relative error of attention: budgets of layers follow what exact rows tell of each sparse call.

Every layer has a share of pairs that it keeps, on a ladder of factors of sqrt(2), and starts at what the sparsity says.
A call whose error, with what its rows leave open, is above the bound runs dense, and its layer goes up the ladder; well
below it goes down a rung, but for a while not to one that was not enough. An error is taken to fall with the root of
what is kept, so a call that is twice above the bound wants four times the pairs. Where the ladder ends the layer stays
dense, and is tried again after a while.

A few rows hold much of an error, so that some dozens of them tell little of one call. Calls of a layer with the same
budget are alike from step to step, and are read together, the older ones for less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dittools.row_errors import Estimate

LADDER = (0.025, 0.035, 0.05, 0.07, 0.1, 0.14, 0.2, 0.28, 0.4, 0.56)
"""Shares of the pairs that may be kept; above, nothing would be gained."""
AIM = 0.85
"""Share of the bound that a new budget aims at."""
EASY = 0.7
"""Share of the bound below which a layer goes down a rung."""
PATIENCE = 4
"""Steps that a layer stays dense before it is tried again."""
OPEN = 1.5
"""Standard errors of what is known of a layer that count as error."""
OLDER = 0.6
"""Weight of what was known of a layer before a call."""
GROWN = 1.3
"""An error so many times that of its first step ends a plan."""


@dataclass
class _Layer:
    density: float
    dense_until: int = -1
    told_at: int = -1  # the latest step: what follows from it is done once, whatever branches say
    changed_at: int = -1
    known: Estimate | None = None  # of calls with this budget
    first: Estimate | None = None  # of the first of them
    too_few: float = 0.0  # the largest budget that was not enough
    too_few_at: int = -1


class ErrorBound:
    """What each layer may skip in one run.

    Args:
        most: relative error that no sparse call may exceed.
        density: share of the pairs that layers begin with.
    """

    def __init__(self, most: float, density: float):
        self.most, self._density = most, density
        self._layers: dict[int, _Layer] = {}

    def density(self, layer: int) -> float:
        """Share of the pairs that a layer keeps now."""
        return self._of(layer).density

    def why_dense(self, layer: int, step: int) -> str | None:
        """Why a layer stays dense in a step; None where it may run sparse."""
        return self._given_up() if step < self._of(layer).dense_until else None

    def told(self, layer: int, step: int, found: Estimate | None) -> str | None:
        """Take a call's error into account. Why it has to run dense; None where it may stand.

        Args:
            found: of this call; None where there is nothing to compare with.
        """
        if found is None:
            return None
        at = self._of(layer)
        first, at.told_at = at.told_at != step, step
        known = found if at.known is None else _read_together(found, at.known)
        if at.changed_at != step:  # else another branch had the budget before it
            at.known, at.first = known, at.first or found
        error = known.error + OPEN * known.uncertainty
        if error > self.most or found.error - found.uncertainty > self.most:
            if first:
                self._up(at, max(error, found.error), step)
            return self._given_up() if step < at.dense_until else f"a sparse call was above max_error {self.most:g}"
        if first and error < EASY * self.most:
            wanted = at.density * max((error / (AIM * self.most)) ** 2, 0.5)
            if at.too_few and step - at.too_few_at <= 2 * PATIENCE:
                wanted = max(wanted, min((share for share in LADDER if share > at.too_few), default=at.density))
            lower = max((share for share in LADDER if share <= wanted), default=min(at.density, LADDER[0]))
            if lower < at.density:
                self._change(at, lower, step)
        return None

    def keeps_plan(self, layer: int) -> bool:
        """Whether what a layer chose is about as good as when it was chosen."""
        at = self._of(layer)
        return at.first is not None and at.known.error <= GROWN * at.first.error

    def planned(self, layer: int) -> None:
        """A layer has chosen anew."""
        self._of(layer).first = None

    @staticmethod
    def _change(at: _Layer, density: float, step: int) -> None:
        at.density, at.changed_at, at.known, at.first = density, step, None, None

    def _up(self, at: _Layer, error: float, step: int) -> None:
        at.too_few, at.too_few_at = at.density, step
        wanted = at.density * (error / (AIM * self.most)) ** 2
        higher = [share for share in LADDER if share > at.density]
        enough = [share for share in higher if share >= wanted]
        if not higher or (not enough and at.density >= LADDER[-1] / 2):
            at.dense_until = step + PATIENCE
        self._change(at, enough[0] if enough else LADDER[-1], step)

    def _of(self, layer: int) -> _Layer:
        return self._layers.setdefault(layer, _Layer(self._density))

    def _given_up(self) -> str:
        return f"no budget keeps this layer within max_error {self.most:g}"


def _read_together(found: Estimate, before: Estimate) -> Estimate:
    """The error of a call and of those before it: squares are averaged, with their uncertainties; the call's own
    where it has left them behind.
    """
    if abs(found.error - before.error) > 2 * math.hypot(found.uncertainty, before.uncertainty):
        return found
    whole = 1 + OLDER
    square = (found.error**2 + OLDER * before.error**2) / whole
    left = [2 * one.error * one.uncertainty for one in (found, before)]
    spread = math.hypot(left[0], OLDER * left[1]) / whole
    error = math.sqrt(square)
    return Estimate(error, spread / (2 * error) if error else 0.0)
