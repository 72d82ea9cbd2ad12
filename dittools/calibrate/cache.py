"""Fits a model's step-cache profile from dense runs: TeaCache's polynomial, MagCache's ratios, and a step mask.

What a cache would have carried over is compared with what the model gave, step by step, while a run goes on; of the
outputs themselves only the latest few are held.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from dittools.caches.base import accumulate, add_latents
from dittools.caches.magcache import magnitudes
from dittools.caches.teacache import polynomial

LOOKBACK = 8
"""How many steps back a computed output is tried in place of a later one."""


@dataclass
class Measured:
    """What was seen of some dense runs of equal steps. Each value is a list over runs and branches.

    Attributes:
        steps: of each run.
        changes: step -> how much the output moved since the step before, relative L1.
        ratios: step -> magnitude over that of the step before, mean over places.
        errors: (step, earlier step) -> error of the earlier output in this one's place, relative L1.
    """

    steps: int
    reuse: str = "output"
    changes: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    ratios: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: dict[tuple[int, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    _held: dict[tuple[int, str], list[tuple[int, torch.Tensor]]] = field(default_factory=dict)

    def note(self, part: int, branch: str, step: int, latents: torch.Tensor, output: torch.Tensor) -> None:
        """One computed call of a run; steps of a branch come in order.

        Args:
            part: which transformer; nothing is carried from one to another.
            latents, output: of the call.
        """
        value = output.detach().float().clone()
        if self.reuse == "delta":
            add_latents(value, latents.float(), -1)
        held = self._held.setdefault((part, branch), [])
        if held and held[-1][0] >= step:
            held.clear()  # the next run
        size = float(output.float().abs().mean())
        for earlier, then in held:
            error = float((value - then).abs().mean()) / size
            self.errors[step, earlier].append(error)
            if earlier == step - 1:
                self.changes[step].append(float((value - then).abs().mean() / then.abs().mean()))
                lengths = value.norm(dim=1), then.norm(dim=1).clamp(min=1e-12)
                self.ratios[step].append(float((lengths[0] / lengths[1]).mean()))
        held.append((step, value))
        del held[:-LOOKBACK]


def fit_polynomial(signals: Sequence[float], measured: Measured) -> dict[str, Any] | None:
    """TeaCache's coefficients: from the time embedding's change to the output's. None with too few steps.

    signals: change of the time embedding at each step, first entry 0.
    """
    steps = [step for step in range(1, measured.steps) if measured.changes[step]]
    if len(steps) < 3:
        return None
    x = np.array([signals[step] for step in steps])
    y = np.array([np.mean(measured.changes[step]) for step in steps])
    degree = min(4, len(steps) - 2)
    # Fitted around the middle of the range and spread over it, then written out: a plain fit is ill-conditioned.
    fit = np.polynomial.Polynomial.fit(x, y, degree).convert()
    coefficients = np.zeros(5)
    coefficients[: len(fit.coef)] = fit.coef
    coefficients = coefficients[::-1].tolist()
    valid = [float(x.min()), float(x.max())]
    guessed = np.array([polynomial(coefficients, value, valid) for value in x])
    spread = float(((y - y.mean()) ** 2).sum())
    r2 = 1 - float(((y - guessed) ** 2).sum()) / spread if spread > 0 else 1.0
    return {"signal": "time_embedding", "coefficients": coefficients, "valid": valid, "r2": r2}


def fit_ratios(measured: Measured) -> list[float]:
    """MagCache's table: one ratio a step, 1 where none was measured (the first step, a new expert)."""
    return [float(np.mean(measured.ratios[s])) if measured.ratios[s] else 1.0 for s in range(measured.steps)]


def fit_mask(
    measured: Measured, computed: int, first: int, last: int, weights: Sequence[float] | None = None
) -> dict[str, Any]:
    """The steps to compute, so many of them, with the least summed error of those reused.

    Args:
        computed: how many steps are computed, at least ``first + last``.
        first, last: steps at either end that are.
        weights: how much each step's error counts, for example how far the sampler goes in it.
    """
    steps = measured.steps
    weights = weights or [1.0] * steps
    free = range(first, steps - last)

    def cost(start: int, end: int) -> float:
        """Of computing ``start`` and then nothing before ``end``."""
        total = 0.0
        for step in range(start + 1, end):
            errors = measured.errors.get((step, start))
            if step not in free or not errors:
                return float("inf")
            total += weights[step] * float(np.mean(errors))
        return total

    # best[k][s]: least error up to a computed step s, the k-th computed one.
    best = {(1, 0): (0.0, (0,))}
    for count in range(2, steps + 1):
        for end in range(1, steps):
            options = [
                (best[count - 1, start][0] + cost(start, end), (*best[count - 1, start][1], end))
                for start in range(max(0, end - LOOKBACK - 1), end)
                if (count - 1, start) in best
            ]
            options = [option for option in options if np.isfinite(option[0])]
            if options:
                best[count, end] = min(options)
    ends = []
    for (count, end), (error, chosen) in best.items():
        tail = cost(end, steps) if end < steps - 1 else 0.0
        if np.isfinite(error + tail):
            # As many as asked for, else the nearest number there is a mask of, rather more than fewer.
            ends.append((abs(count - computed), -count, error + tail, chosen))
    _, _, error, chosen = min(ends)
    mask = "".join("1" if step in chosen else "0" for step in range(steps))
    return {"mask": mask, "computed": len(chosen), "error": float(error)}


def threshold_for(mask_at: Callable[[float], list[bool]], computed: int, most: float = 10.0) -> float:
    """The least threshold at which no more than so many steps are computed."""
    low, high = 0.0, most
    if sum(mask_at(most)) > computed:
        return most
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if sum(mask_at(middle)) <= computed else (middle, high)
    digits = 3 - math.floor(math.log10(high))
    return math.ceil(high * 10**digits) / 10**digits  # rounded down it would be another schedule


def profile(
    measured: Measured,
    signals: Sequence[float] | None,
    *,
    computed: float,
    first: int,
    last: int = 1,
    max_skips: int = 4,
    weights: Sequence[float] | None = None,
) -> dict[str, Any]:
    """The entries of a profile: "teacache" where the time embedding is known, "magcache" and "masks".

    Args:
        signals: change of the time embedding at each step; None where it is not known.
        computed: share of the steps to compute; the thresholds and the mask are chosen for it.
        first, last, max_skips, weights: as the caches and `fit_mask` have them.
    """
    steps = measured.steps
    target = max(first + last, round(computed * steps))
    forced = [not first <= step < steps - last for step in range(steps)]
    found: dict[str, Any] = {"masks": {str(steps): fit_mask(measured, target, first, last, weights)}}
    ratios = fit_ratios(measured)
    found["magcache"] = {
        "ratios": ratios,
        "threshold": threshold_for(lambda t: magnitudes(ratios, t, max_skips, forced), target),
        "max_skips": max_skips,
        "first": first,
    }
    fit = fit_polynomial(signals, measured) if signals is not None else None
    if fit is not None:
        costs = [polynomial(fit["coefficients"], signal, fit["valid"]) for signal in signals]
        fit["threshold"] = threshold_for(lambda t: accumulate(costs, t, forced, max_skips), target)
        found["teacache"] = fit | {"first": first}
    return found
