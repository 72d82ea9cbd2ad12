"""Heads that take a sample, and heads that do without: who gains, what they keep, and for how long."""

import dataclasses

import pytest
import torch

from dittools.attention import attend
from dittools.call_info import CallInfo, Timing
from dittools.config import Config
from dittools.corrections import SparseCall
from dittools.corrections.by_head import errors_by_head
from dittools.corrections.fit import Fit
from dittools.corrections.sampled import ALL, EVERY, NONE, SOME, Sampled
from dittools.kernels.masks.block_mask import BlockMask
from dittools.methods.base import StayDense
from dittools.methods.oracle import Oracle
from dittools.runtime import Layer, Runtime
from dittools.tokens import TokenGrid
from tests.methods.scenes import call, dense
from tests.methods.test_clusters import error

GRID, BLOCK, SPARSITY = TokenGrid(8, 16, 16), 64, 0.8
SCALE = 64**-0.5


def made(sharp, batches=1, seed=0):
    """q, k and v of a head each: spread attention over values that differ by block, or with ``sharp`` nearly all of a
    row in five blocks of keys: more than what is left beside a sample, and fewer than fit without."""
    drawn = torch.Generator().manual_seed(seed)
    tokens, count = GRID.tokens, GRID.tokens // BLOCK
    q, k, v = torch.randn(3, batches, tokens, len(sharp), 64, generator=drawn)
    at = torch.randn(count, 64, generator=drawn).repeat_interleave(BLOCK, 0)
    near = sum(at.roll((3 + i) * BLOCK, 0) for i in range(5))
    v = v + 2 * torch.randn(count, 64, generator=drawn).repeat_interleave(BLOCK, 0)[:, None]
    for head, is_sharp in enumerate(sharp):
        if is_sharp:
            q[:, :, head], k[:, :, head] = 3 * at + 0.1 * q[:, :, head], near + 0.1 * k[:, :, head]
    return q.contiguous(), k.contiguous(), v.contiguous()


def planned(sampled, q, k, v, step=5, run_cache=None, method=None):
    """The plan with the correction, its call, and at which sparsities the method was asked."""
    asked, method = [], method or Oracle()
    one = call(GRID, sampled.sparsity_of_plans(SPARSITY, BLOCK), step=step, run_cache=run_cache, block=BLOCK)

    def make(sparsity=one.sparsity):
        asked.append(sparsity)
        return method.plan(q, k, v, dataclasses.replace(one, sparsity=sparsity, branch_state={}))

    return sampled.plan(make, one, lambda: (q, k, v), SPARSITY), one, asked


def corrected(sampled, q, k, v, plan, one):
    sample = sampled.sample(plan, one, SPARSITY)
    out, lse = attend(q, k, v, plan, SCALE, return_lse=True, sample=sample)
    return sampled.correct(SparseCall(q, k, v, plan, True, out, lse, one, {}, SPARSITY, sample))


@pytest.mark.parametrize("order", ["raster", "cubes"])
@pytest.mark.parametrize("batches", [1, 2])
def test_spread_heads_gain_by_a_sample_and_sharp_ones_do_not(order, batches):
    q, k, v = made([False, True, False, True], batches)
    sampled = Sampled()
    one = call(GRID, sampled.sparsity_of_plans(SPARSITY, BLOCK), block=BLOCK)
    plan = Oracle(order=order).plan(q, k, v, one)
    sample = dataclasses.replace(sampled, by_head=False).sample(plan, one, SPARSITY)
    wrong = errors_by_head((q, k, v), plan, sample, SCALE, torch.Generator().manual_seed(1))
    found = wrong[:, 0] < wrong[:, 1]
    # In cubes the runs of keys that sharp heads look at are torn apart: there nobody is asked of them.
    assert found[[0, 2]].all() and (order == "cubes" or not found[[1, 3]].any())


def test_each_head_has_what_is_nearer_to_dense_and_all_keep_as_many_pairs():
    q, k, v = made([False, True, False])
    exact = dense(q, k, v)
    plan, one, asked = planned(Sampled(), q, k, v)
    assert len(asked) == 2 and asked[1] == SPARSITY < asked[0]
    done = corrected(Sampled(), q, k, v, plan, one)
    everyone, alone = Sampled(by_head=False), Oracle().plan(q, k, v, call(GRID, SPARSITY, block=BLOCK))
    for head, is_sharp in enumerate([False, True, False]):
        mine = [x[:, :, head] for x in (done.out, exact)]
        other = attend(q, k, v, alone, SCALE)[0][:, :, head]
        if is_sharp:
            assert torch.equal(mine[0], other)
            plan_all, call_all, _ = planned(everyone, q, k, v)
            sampled_out = corrected(everyone, q, k, v, plan_all, call_all).out[:, :, head]
            assert error(mine[0], mine[1]) < error(sampled_out, mine[1])
        else:
            assert error(*mine) < 0.8 * error(other, mine[1])
    kept = plan.density().double().mean()
    assert float(kept + (1 - kept) * done.computed) == pytest.approx(1 - SPARSITY, abs=0.01)
    assert Sampled().facts(one)["sampled"].tolist() == [True, False, True]
    assert "heads that gain by it" in done.notes[0]


@pytest.mark.parametrize("sharp,some", [([False, False], ALL), ([True, True], NONE), ([True, False], SOME)])
def test_what_was_chosen_holds_for_some_steps_and_no_plan_is_made_in_vain(sharp, some):
    q, k, v = made(sharp)
    sampled, plan, one, asked = Sampled(), *planned(Sampled(), q, k, v, step=2)
    cache, fewer = one.run_cache, sampled.sparsity_of_plans(SPARSITY, BLOCK)
    flat = made([False, False], seed=3)  # what comes later does not matter until it is asked again
    for step in range(3, 2 + EVERY):
        plan, one, asked = planned(sampled, *flat, step=step, run_cache=cache)
        assert sampled._kept(one).some == some
        assert asked == {ALL: [fewer], NONE: [SPARSITY], SOME: [fewer, SPARSITY]}[some]
        assert (sampled.sample(plan, one, SPARSITY) is None) == (some == NONE)
    if some == NONE:
        done = corrected(sampled, *flat, plan, one)
        assert done.notes == () and done.computed == 0 and torch.equal(done.out, attend(*flat, plan, SCALE)[0])
    planned(sampled, *flat, step=2 + EVERY, run_cache=cache)
    assert sampled._kept(one).some == ALL


def test_heads_that_share_a_budget_do_the_same_and_what_averages_out_over_more_steps_may_be_larger():
    q, k, v = made([True, False, True], seed=1)
    _, one, asked = planned(Sampled(), q, k, v, method=Oracle(scope="layer"))
    assert len(set(Sampled()._kept(one).heads.tolist())) == 1 and len(asked) == (Sampled()._kept(one).some != ALL) + 1
    q, k, v = torch.randn(3, 1, GRID.tokens, 2, 64, generator=torch.Generator().manual_seed(0))  # a draw, in one call
    chosen = [Sampled()._kept(planned(Sampled(), q, k, v, step=step)[1]).some for step in (0, 9)]
    assert chosen[0] == ALL != chosen[1]


def test_values_that_are_no_numbers_decide_nothing_and_no_heads_have_no_errors():
    q, k, v = made([True, True])
    v[:, 3] = torch.nan
    assert Sampled()._kept(planned(Sampled(), q, k, v)[1]).some == ALL
    plan, one, _ = planned(Sampled(by_head=False), q, k, v)
    sample = Sampled(by_head=False).sample(plan, one, SPARSITY)
    none = [x[:, :, :0] for x in (q, k, v)]
    plan = dataclasses.replace(plan, mask=BlockMask(plan.mask.keep[:, :0], plan.mask.query, plan.mask.key))
    assert errors_by_head(none, plan, sample, SCALE, torch.Generator()).shape == (0, 2)


def test_a_method_that_stays_dense_is_asked_no_more_and_fit_hands_the_choice_on():
    q, k, v = made([True, True])
    one = call(GRID, 0.9, block=BLOCK)
    assert Sampled().plan(lambda: StayDense("why"), one, None, SPARSITY).reason == "why"
    sampled = Sampled()
    plan, one, asked = planned(Fit(on="sampled"), q, k, v)
    assert len(asked) == 2 and sampled._kept(one).some == NONE
    assert Fit(on="sampled").sample(plan, one, SPARSITY) is None


def test_a_run_tells_which_heads_took_a_sample_and_keeps_to_its_budget():
    q, k, v = made([False, True])
    settings = {"method": "oracle", "correction": "sampled", "dense_layers": 0, "dense_steps": 0}
    runtime = Runtime(Config(**settings, sparsity=SPARSITY, block_size=BLOCK), [Layer("0", 0), Layer("1", 1)])
    schedule = torch.tensor([900.0, 500.0, 0.0])
    for step in range(3):
        timing = Timing(schedule[step], schedule, "cond", step_index=step, steps=3)
        runtime.begin_call(CallInfo(timing, GRID, q.device, q.dtype))
        for layer in range(2):
            runtime.attend(layer, q, k, v, dense=lambda: dense(q, k, v))
        assert not runtime.end_call()
    assert runtime.run.fact_counts() == [{"sampled": 3, "not sampled": 3}] * 2
    assert runtime.run.skipped(runtime.run.calls) == pytest.approx(SPARSITY, abs=0.01)
