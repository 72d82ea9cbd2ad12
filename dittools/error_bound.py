"""A bound on the relative error of attention: budgets of layers follow what exact rows tell of each sparse call.

Every layer has a share of pairs that it keeps, on a ladder of factors of sqrt(2), and starts at what the sparsity says.
A call whose error, with what its rows leave open, is above the bound runs dense, and its layer goes up the ladder; well
below it goes down a rung. An error is taken to fall with the root of what is kept, so a call that is twice above the
bound wants four times the pairs. Where the ladder ends the layer stays dense, and is tried again after a while.
"""

from __future__ import annotations

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


@dataclass
class _Layer:
    density: float
    dense_until: int = -1
    changed: int = -1  # the step of the latest change: once a step, whatever branches say


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
        at, error = self._of(layer), found.error + found.uncertainty
        first, at.changed = at.changed != step, step
        if error > self.most:
            if first:
                self._up(at, error, step)
            return self._given_up() if step < at.dense_until else f"a sparse call was above max_error {self.most:g}"
        if first and error < EASY * self.most:
            wanted = at.density * max((error / (AIM * self.most)) ** 2, 0.5)
            at.density = max((share for share in LADDER if share <= wanted), default=min(at.density, LADDER[0]))
        return None

    def _up(self, at: _Layer, error: float, step: int) -> None:
        wanted = at.density * (error / (AIM * self.most)) ** 2
        higher = [share for share in LADDER if share > at.density]
        enough = [share for share in higher if share >= wanted]
        if not higher or (not enough and at.density >= LADDER[-1] / 2):
            at.dense_until = step + PATIENCE
        at.density = enough[0] if enough else LADDER[-1]

    def _of(self, layer: int) -> _Layer:
        return self._layers.setdefault(layer, _Layer(self._density))

    def _given_up(self) -> str:
        return f"no budget keeps this layer within max_error {self.most:g}"
