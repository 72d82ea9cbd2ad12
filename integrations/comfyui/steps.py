"""Which step of a sampling run a sigma belongs to."""

from __future__ import annotations

from collections.abc import Sequence

CLOSE = 1e-4  # relative; a sigma may have been through half precision


class Steps:
    """The steps of one run: as many as it has sigmas, less the last, at which nothing is called.

    A sampler may call the model between two sigmas of its schedule (second-order and stochastic ones do), or above the
    sigma at which a step begins: such calls are of the step they are in, and steps never go back.

    Args:
        sigmas: of the run, from the first to the one at its end; falling, or rising where noise is put in.
        share: whether they are shares of noise, as in flow matching.
    """

    def __init__(self, sigmas: Sequence[float], share: bool):
        self.sigmas, self._share = [float(sigma) for sigma in sigmas], share
        self._sign = -1 if self.sigmas[0] < self.sigmas[-1] else 1
        self.at = -1

    @property
    def count(self) -> int:
        """Steps of the run, at least 1."""
        return max(len(self.sigmas) - 1, 1)

    def noise(self, step: int) -> float:
        """Share of noise in the latents of a step, from 0 to 1."""
        sigma = self.sigmas[step]
        return sigma if self._share else sigma / (1 + sigma)

    def timesteps(self) -> list[float]:
        """Of each step, of 1000, as shares of noise; what windows of step caches are given in."""
        return [1000 * self.noise(step) for step in range(self.count)]

    def step_of(self, sigma: float) -> int:
        """The step of a call at this sigma."""
        found = 0
        for step, start in enumerate(self.sigmas[: self.count]):
            if self._sign * (start - sigma) >= -CLOSE * abs(start):
                found = step
        # Where the next step has begun, a call at the same sigma or above is still of it.
        self.at = max(self.at, found)
        return self.at
