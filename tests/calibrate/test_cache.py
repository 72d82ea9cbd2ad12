"""Fits from dense runs: polynomials, ratios and masks whose right answers are known."""

import itertools

import numpy as np
import pytest
import torch

from dittools.caches.teacache import polynomial
from dittools.calibrate.cache import Measured, fit_mask, fit_polynomial, fit_ratios, profile, threshold_for


def measured(values, reuse="output", branches=("cond",), runs=1):
    """What is seen of runs whose output has this value in each step."""
    found = Measured(len(values), reuse)
    for _ in range(runs):
        for step, value in enumerate(values):
            for branch in branches:
                found.note(0, branch, step, torch.zeros(1, 2, 3, 3), torch.full((1, 2, 3, 3), float(value)))
    return found


def test_changes_ratios_and_errors_are_those_of_the_outputs():
    found = measured([1.0, 2.0, 3.0], branches=("cond", "uncond"), runs=2)
    assert found.changes == {1: [1.0] * 4, 2: [0.5] * 4}
    assert fit_ratios(found) == pytest.approx([1.0, 2.0, 1.5])
    assert found.errors[2, 0] == pytest.approx([2 / 3] * 4) and found.errors[2, 1] == pytest.approx([1 / 3] * 4)


def test_with_delta_the_latents_are_taken_off():
    found = Measured(2, "delta")
    for step, (x, v) in enumerate([(1.0, 3.0), (2.0, 4.0)]):  # the delta stays 2
        found.note(0, "cond", step, torch.full((1, 3, 2, 2), x), torch.full((1, 2, 2, 2), v))
    assert found.errors[1, 0] == [0.0] and found.ratios[1] == pytest.approx([1.0])


def test_nothing_is_compared_across_experts_or_runs():
    found = Measured(4)
    for part, step in ((0, 0), (0, 1), (1, 2), (1, 3), (0, 0), (0, 1)):
        found.note(part, "cond", step, torch.zeros(1, 2, 2, 2), torch.ones(1, 2, 2, 2) * (1 + step))
    assert set(found.errors) == {(1, 0), (3, 2)} and len(found.errors[1, 0]) == 2
    assert fit_ratios(found)[2] == 1.0


def test_a_known_polynomial_is_found_again():
    true = [3.0, -2.0, 0.5, 1.5, 0.05]
    x = np.linspace(0.02, 0.6, 12)
    found = Measured(13)
    for step, value in enumerate(x, 1):
        found.changes[step] = [float(np.polyval(true, value))]
    fit = fit_polynomial([0.0, *x], found)
    assert fit["r2"] > 0.9999 and fit["valid"] == pytest.approx([0.02, 0.6])
    for value in (0.02, 0.3, 0.6):
        assert polynomial(fit["coefficients"], value, fit["valid"]) == pytest.approx(np.polyval(true, value), rel=1e-4)


def test_with_few_steps_the_degree_is_lower_and_with_too_few_there_is_no_fit():
    found = measured([1.0, 1.5, 1.8, 2.0])
    fit = fit_polynomial([0.0, 0.3, 0.2, 0.1], found)
    assert len(fit["coefficients"]) == 5 and fit["coefficients"][:3] == [0, 0, 0]
    assert fit_polynomial([0.0, 0.1, 0.1], measured([1, 2, 3])) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_the_best_of_all_masks(seed):
    steps, computed = 8, 4
    generator = np.random.default_rng(seed)
    found = measured(np.cumsum(generator.random(steps)) + 1)
    weights = list(generator.random(steps) + 0.1)

    def error(mask):
        total, last = 0.0, 0
        for step, keep in enumerate(mask):
            if keep:
                last = step
            else:
                total += weights[step] * np.mean(found.errors[step, last])
        return total

    every = [m for m in itertools.product((0, 1), repeat=steps) if sum(m) == computed and m[0] and m[-1]]
    best = min(every, key=error)
    fit = fit_mask(found, computed, 1, 1, weights)
    assert fit["mask"] == "".join(map(str, best)) and fit["error"] == pytest.approx(error(best))
    assert fit["computed"] == computed


def test_a_mask_of_all_steps_costs_nothing_and_one_that_cannot_be_so_short_computes_more():
    found = measured(range(1, 13))
    assert fit_mask(found, 12, 1, 1) == {"mask": "1" * 12, "computed": 12, "error": 0.0}
    short = fit_mask(measured(range(1, 25)), 2, 1, 1)  # outputs are tried at most 8 steps later
    assert short["computed"] > 2 and short["mask"].count("1") == short["computed"]
    assert "0" * 9 not in short["mask"]


def test_a_threshold_gives_the_number_of_steps_asked_for():
    changes = [0.1, 0.2, 0.3, 0.4]

    def mask_at(threshold):
        return [change >= threshold for change in changes]

    found = threshold_for(mask_at, 2)
    assert sum(mask_at(found)) == 2 and sum(mask_at(found - 0.02)) > 2


def test_a_profile_computes_the_share_asked_for():
    steps = 20
    found = measured([1 + 0.05 * s + 0.001 * s**2 for s in range(steps)])
    signals = [0.0, *[0.1 + 0.01 * s for s in range(1, steps)]]
    entries = profile(found, signals, computed=0.5, first=4)
    assert entries["masks"]["20"]["computed"] == 10
    assert set(entries) == {"masks", "magcache", "teacache"}
    assert "teacache" not in profile(found, None, computed=0.5, first=4)
