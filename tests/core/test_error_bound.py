"""`max_error`: no sparse call above it, budgets that follow the error, and dense with the reason where none will do."""

import pytest
import torch

from dittools import Config
from dittools.call_info import CallInfo, Timing
from dittools.error_bound import LADDER, PATIENCE, ErrorBound
from dittools.row_errors import Estimate
from dittools.runtime import Layer, Runtime
from dittools.summary import record
from tests.core.test_row_errors import GRID, exact
from tests.methods.test_corrections import neighbourly


def play(steps=6, sharpness=(0.2, 1.5), **settings):
    """A run of two layers, a flat and a sharp one; the true error of every call that ran sparse, by step and layer."""
    given = {"method": "sparge", "sparsity": 0.8, "dense_steps": 0, "dense_layers": 0, "block_size": 64}
    runtime = Runtime(Config(**given | settings), [Layer(str(i), i) for i in range(len(sharpness))])
    schedule, true = torch.linspace(1000, 0, steps), {}
    for step in range(steps):
        timing = Timing(schedule[step], schedule, "cond", step_index=step, steps=steps)
        runtime.begin_call(CallInfo(timing, GRID, torch.device("cpu"), torch.float32))
        for layer, sharp in enumerate(sharpness):
            q, k, v = neighbourly(GRID, seed=layer)
            q, v = q * sharp + 0.01 * step, v + 2
            out = runtime.attend(layer, q, k, v, dense=lambda q=q, k=k, v=v: exact(q, k, v))
            if runtime.run.calls[-1].density is not None:
                want = exact(q, k, v)
                true[step, layer] = float((out - want).norm() / want.norm())
        assert not runtime.end_call()
    return runtime, true


@pytest.mark.parametrize(("correction", "most"), [("none", 0.2), ("none", 0.28), ("sampled", 0.12)])
def test_no_sparse_call_is_above_the_bound_and_what_was_is_dense_with_the_reason(correction, most):
    runtime, true = play(max_error=most, correction=correction)
    assert true and max(true.values()) < 1.1 * most  # rows leave a little open
    found = record(runtime)
    redone = [entry for entry in found["fallbacks"] if "max_error" in entry["reason"]]
    assert found["calls"]["sparse"] == len(true)
    assert sum(entry["count"] for entry in redone) == found["calls"]["dense"] == 12 - len(true)
    _, errors = play(correction=correction)
    assert max(errors.values()) > most  # without a bound it is passed


def test_budgets_follow_the_error_of_each_layer():
    runtime, _ = play(max_error=0.35, sharpness=(0.5, 4.0))
    kept = {(call.step, call.layer): call.density for call in runtime.run.calls}
    last = [float(kept[5, layer]) if kept[5, layer] is not None else 1.0 for layer in (0, 1)]
    assert last[0] < last[1] - 0.1
    rows = record(runtime)["attention_error"]["rows"]
    assert rows == 128 and play(max_error=0.3, error_rows=32)[0].config.exact_rows == 32


def test_a_bound_that_nothing_holds_runs_dense_and_is_tried_again_now_and_then():
    runtime, true = play(steps=12, max_error=0.001)
    assert true == {}
    reasons = {entry["reason"]: entry["count"] for entry in record(runtime)["fallbacks"]}
    assert set(reasons) == {
        "a sparse call was above max_error 0.001",
        "no budget keeps this layer within max_error 0.001",
    }


def test_a_layer_climbs_as_far_as_its_error_asks_and_comes_down_rung_by_rung():
    bound = ErrorBound(0.1, 0.2)
    assert bound.density(3) == 0.2 and bound.told(3, 0, None) is None
    assert "above max_error 0.1" in bound.told(3, 0, Estimate(0.12, 0.0))
    assert bound.density(3) == 0.4  # (0.12 / 0.085)^2 times 0.2
    assert bound.density(2) == 0.2  # others are where they were
    assert bound.told(3, 1, Estimate(0.09, 0.005)) is None and bound.density(3) == 0.4
    for step in (2, 3, 4):
        assert bound.told(3, step, Estimate(0.01, 0.0)) is None
        assert bound.told(3, step, Estimate(0.01, 0.0)) is None  # what follows from it is done once a step
    assert bound.density(3) == 0.28  # 0.2 was not enough a few steps ago
    for step in range(5, 20):
        assert bound.told(3, step, Estimate(0.001, 0.0)) is None
    assert bound.density(3) == LADDER[0]
    few = ErrorBound(0.1, 0.02)  # below the ladder: what is easy keeps no more than was asked
    assert few.told(0, 0, Estimate(0.001, 0.0)) is None and few.density(0) == 0.02
    assert bound.told(3, 20, Estimate(0.09, 0.02)) is not None  # the uncertainty counts
    bound.told(3, 21, Estimate(0.9, 0.0))
    bound.told(3, 22, Estimate(0.9, 0.0))
    assert bound.why_dense(3, 23) and bound.why_dense(3, 22 + PATIENCE) is None


def test_a_choice_is_kept_for_as_long_as_its_error_stays():
    bound = ErrorBound(0.2, 0.2)
    assert not bound.keeps_plan(0)  # nothing is known of it
    assert bound.told(0, 0, Estimate(0.15, 0.0)) is None and bound.keeps_plan(0) and not bound.keeps_plan(1)
    assert bound.told(0, 1, Estimate(0.199, 0.0)) is None and not bound.keeps_plan(0)
    bound.planned(0)
    assert not bound.keeps_plan(0)
    assert bound.told(0, 2, Estimate(0.199, 0.0)) is None and bound.keeps_plan(0)


def test_what_another_branch_had_with_the_budget_before_says_nothing_of_the_new_one():
    bound = ErrorBound(0.1, 0.2)
    assert bound.told(0, 0, Estimate(0.12, 0.01)) is not None and bound.density(0) > 0.2
    assert bound.told(0, 0, Estimate(0.05, 0.02)) is None and not bound.keeps_plan(0)
    assert bound.told(0, 1, Estimate(0.08, 0.01)) is None and bound.keeps_plan(0)


def test_calls_with_a_budget_are_read_together():
    bound = ErrorBound(0.1, 0.2)
    assert bound.told(0, 0, Estimate(0.08, 0.008)) is None
    assert bound.told(0, 1, Estimate(0.092, 0.008)) is None  # by itself it might be above
    assert ErrorBound(0.1, 0.2).told(0, 1, Estimate(0.092, 0.008)) is not None


def test_kept_plans_do_not_outlive_their_budget():
    runtime, true = play(max_error=0.3, refresh=100)
    kept = {float(call.density) for call in runtime.run.calls if call.density is not None and call.layer == 1}
    assert true and max(true.values()) < 0.33 and len(kept) >= 1
    assert runtime.run.plans_reused > 0


@pytest.mark.parametrize("value", [0, 1, -0.1, "x", True])
def test_a_bound_is_a_share(value):
    with pytest.raises(ValueError, match="max_error must be a number"):
        Config(max_error=value)
