"""Decisions of one run, call by call, without a model: who decides, what is forced, what each branch gets."""

import math

import pytest
import torch

from dittools import caches
from dittools.caches.base import Trajectory
from dittools.clock import Tick
from dittools.reuse import Reuse


def run_of(cache, steps=12, *, first=1, last=1, sparse=False, dense=(), options=None):
    forced = tuple(s < first or s >= steps - last for s in range(steps))
    timesteps = tuple(1000.0 * (1 - s / steps) for s in range(steps))
    model = caches.Model("M")
    made = caches.create(cache, options or {}).bind(model)
    return Reuse(made, Trajectory(steps, timesteps, forced, model, sparse))


def value(branch, step, size=(1, 4, 2, 3, 3)):
    """An output that says whose it is and of which step."""
    return torch.full(size, float(step) + {"cond": 100, "uncond": 200, "third": 300}[branch.split("#")[0]])


def call(reuse, step, branch="cond", part=0, dense=False, latents=None, output=None, why=None, noise=0.5):
    """One call: (reused, what the pipeline gets)."""
    steps = reuse.run.steps
    latents = torch.zeros(1, 4, 2, 3, 3) if latents is None else latents
    verdict = reuse.begin(Tick(step == 0, step, steps, branch, dense), part, latents, noise, why)
    if verdict is False:
        return True, reuse.stand_in(latents)[0]
    output = value(branch, step) if output is None else output
    reuse.carry(latents, [output])
    return False, output


EVERY_THIRD = {"interval": 3, "start": 0, "order": 0, "first": 1, "reuse": "output"}


def test_each_branch_gets_its_own_output_also_with_three_and_whatever_their_order():
    reuse = run_of("taylorseer", 9, options=EVERY_THIRD)
    for step in range(8):
        for branch in ("cond", "uncond", "third") if step % 2 else ("third", "uncond", "cond"):
            reused, got = call(reuse, step, branch)
            assert reused == (step % 3 != 0)
            assert torch.equal(got, value(branch, step - step % 3))


def test_a_delta_is_added_to_the_branchs_own_latents():
    reuse = run_of("taylorseer", 9, options=EVERY_THIRD | {"reuse": "delta"})
    x0, x1 = torch.randn(2, 1, 4, 2, 3, 3)
    call(reuse, 0, latents=x0)
    reused, got = call(reuse, 1, latents=x1)
    assert reused
    torch.testing.assert_close(got, x1 + value("cond", 0) - x0)


def test_conditioning_channels_are_no_part_of_the_delta():
    reuse = run_of("taylorseer", 9, options=EVERY_THIRD | {"reuse": "delta"})
    x0, x1 = torch.randn(2, 1, 9, 2, 3, 3)
    call(reuse, 0, latents=x0)
    got = call(reuse, 1, latents=x1)[1]
    torch.testing.assert_close(got, x1[:, :4] + value("cond", 0) - x0[:, :4])


def test_guidance_that_stops_and_comes_back_is_not_given_what_is_long_past():
    reuse = run_of("easycache", 20, options={"threshold": 1e9, "first": 1, "max_skips": 4})
    decisions = []
    for step in range(19):
        x = torch.randn(1, 4, 2, 3, 3)
        call(reuse, step, "cond", latents=x)
        if step < 4 or step >= 14:
            decisions.append((step, call(reuse, step, "uncond", latents=x)[0]))
    assert dict(decisions)[14] is False  # last computed ten steps ago
    assert any(reused for step, reused in decisions if step > 14)


def test_the_first_branch_of_a_step_decides_for_the_others():
    reuse = run_of("easycache", 20, options={"threshold": 3.0, "first": 2})
    torch.manual_seed(0)
    for step in range(19):
        x = torch.randn(1, 4, 2, 3, 3)
        both = [
            call(reuse, step, branch, latents=x, output=torch.randn(1, 4, 2, 3, 3))[0] for branch in ("cond", "uncond")
        ]
        assert both[0] == both[1]
    reused = sum(entry.reused for entry in reuse.log)
    assert 0 < reused < 36


def test_a_model_called_twice_a_step_by_one_branch_keeps_the_two_calls_apart():
    reuse = run_of("taylorseer", 9, options=EVERY_THIRD)
    for step in range(3):
        one = call(reuse, step, output=torch.ones(1, 4, 2, 3, 3) * (step + 1))[1]
        two = call(reuse, step, output=torch.ones(1, 4, 2, 3, 3) * (step + 1) * 10)[1]
        assert (one.mean(), two.mean()) == (1, 10)


def test_nothing_crosses_from_one_expert_to_the_next_and_the_first_call_of_an_expert_is_computed():
    reuse = run_of("taylorseer", 12, options={"interval": 100, "first": 1, "order": 0, "start": 0})
    seen = [call(reuse, step, part=int(step >= 5)) for step in range(11)]
    assert [reused for reused, _ in seen] == [False, *[True] * 4, False, *[True] * 5]
    assert torch.equal(seen[9][1], value("cond", 5))
    # What the first expert gave is not held any more.
    assert len(reuse.tensors()) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_signal_that_is_not_finite_computes_and_is_counted(bad):
    reuse = run_of("easycache", 12, options={"threshold": 1e9, "first": 2})
    decisions = []
    for step in range(8):
        x = torch.randn(1, 4, 2, 3, 3)
        if step == 5:
            x[0, 0, 0, 0, 0] = bad
        decisions.append(call(reuse, step, latents=x, output=torch.randn(1, 4, 2, 3, 3))[0])
    assert decisions[4] and not decisions[5]
    assert reuse.bad_signals >= 1
    assert any("not finite" in note for note in reuse.guard_rails())


def test_a_step_at_which_attention_turns_sparse_or_dense_is_computed():
    reuse = run_of("taylorseer", 12, sparse=True, options={"interval": 100, "first": 1, "order": 0, "start": 0})
    decisions = [call(reuse, step, dense=step < 4 or step >= 8)[0] for step in range(11)]
    assert [step for step, reused in enumerate(decisions) if not reused] == [0, 4, 8]
    assert [entry.why for entry in reuse.log if not entry.reused][1:] == [
        "attention switches between dense and sparse"
    ] * 2


def test_in_a_dense_run_the_schedule_of_attention_means_nothing():
    reuse = run_of("taylorseer", 12, sparse=False, options={"interval": 100, "first": 1, "order": 0, "start": 0})
    decisions = [call(reuse, step, dense=step < 4)[0] for step in range(11)]
    assert decisions == [False, *[True] * 10]


def test_a_reason_from_outside_computes():
    reuse = run_of("taylorseer", 12, options=EVERY_THIRD)
    call(reuse, 0)
    assert call(reuse, 1, why="gradients are enabled")[0] is False
    assert reuse.log[-1].why == "gradients are enabled"


def test_easycache_follows_its_rule():
    """Against the rule written out with numbers: one channel, one pixel."""
    xs = [4.0, 3.0, 2.5, 2.2, 2.0, 1.9, 1.5, 1.4]
    vs = [1.0, 1.5, 1.8, 2.0, 2.1, 2.2, 2.3, 2.4]
    threshold = 0.45
    expected, acc, rate, computed, before = [], 0.0, None, None, None
    for step, (x, v) in enumerate(zip(xs, vs, strict=True)):
        compute = step < 2
        if not compute:
            acc += rate * abs(x - before) / abs(computed[1])
            compute = acc >= threshold
        if compute:
            if computed is not None:
                rate = abs(v - computed[1]) / abs(x - computed[0])
            acc, computed = 0.0, (x, v)
        before = x
        expected.append(not compute)
    reuse = run_of("easycache", 20, first=2, options={"threshold": threshold, "first": 2})
    tensor = lambda number: torch.full((1, 1, 1, 1, 1), number)  # noqa: E731
    got = [call(reuse, s, latents=tensor(x), output=tensor(v))[0] for s, (x, v) in enumerate(zip(xs, vs, strict=True))]
    assert got == expected and 0 < sum(expected) < 6


def watch(reuse, step, residual, branch="cond"):
    verdict = reuse.begin(Tick(step == 0, step, reuse.run.steps, branch, False), 0, torch.zeros(1, 4), None)
    if verdict is None:
        verdict = reuse.watch(residual)
    if verdict:
        reuse.carry(torch.zeros(1, 4), [torch.zeros(1, 4) + step])
        return False
    reuse.stand_in(torch.zeros(1, 4))
    return True


def test_the_first_block_is_compared_with_that_of_the_last_computed_step():
    reuse = run_of("first_block", 12, options={"threshold": 0.1, "sample": 1})
    sizes = [1.0, 1.04, 1.08, 1.12, 1.16, 1.2]  # each 4 % from the one before
    decisions = [watch(reuse, step, torch.full((1, 5, 8), size)) for step, size in enumerate(sizes)]
    assert decisions == [False, True, True, False, True, True]


def test_a_first_block_that_is_no_number_computes():
    reuse = run_of("first_block", 12, options={"threshold": 0.1})
    watch(reuse, 0, torch.ones(1, 5, 8))
    assert watch(reuse, 1, torch.full((1, 5, 8), math.nan)) is False and reuse.bad_signals == 1


def test_a_first_block_that_cannot_be_watched_computes_and_says_so():
    reuse = run_of("first_block", 12)
    watch(reuse, 0, torch.ones(1, 5, 8))
    assert watch(reuse, 1, None) is False
    assert any("cannot be watched" in note for note in reuse.guard_rails())


def test_the_following_branches_do_not_run_the_first_block_to_decide():
    reuse = run_of("first_block", 12, options={"threshold": 0.1})
    for step in (0, 1):
        watch(reuse, step, torch.ones(1, 5, 8), "cond")
        verdict = reuse.begin(Tick(False, step, 12, "uncond", False), 0, torch.zeros(1, 4), None)
        assert verdict is (step == 0)
        if verdict:
            reuse.carry(torch.zeros(1, 4), [torch.zeros(1, 4)])


def notes_of(cache, steps, forced=1, **options):
    reuse = run_of(cache, steps, first=forced, options=options)
    for step in range(steps):
        call(reuse, step, latents=torch.full((1, 4, 2, 3, 3), 1.0), output=torch.ones(1, 4, 2, 3, 3))
    return " | ".join(reuse.guard_rails())


def test_guard_rails_speak_where_they_should_and_only_there():
    third = {key: EVERY_THIRD[key] for key in ("interval", "start", "order", "first")}
    assert notes_of("taylorseer", 30, **third | {"interval": 2}) == ""
    assert "each one matters" in notes_of("taylorseer", 10, **third)
    assert "expect another picture" in notes_of("taylorseer", 30, **third | {"interval": 9})
    assert "nothing was reused" in notes_of("taylorseer", 30, forced=30, interval=100, start=0)
    assert "no step lies within its window" in notes_of("pab", 30, low=1, high=2)
    assert notes_of("taylorseer", 10, interval=1) == ""


def test_a_pipeline_that_names_no_branches_is_noted():
    reuse = run_of("taylorseer", 30, options=EVERY_THIRD)
    call(reuse, 0, "call0", output=torch.ones(1, 4, 2, 3, 3))
    assert any("told apart by their order" in note for note in reuse.guard_rails())


def test_sea_without_a_noise_level_computes_and_says_so():
    reuse = run_of("sea", 12)
    decisions = [call(reuse, step, latents=torch.ones(1, 4, 2, 3, 3), noise=None)[0] for step in range(5)]
    assert not any(decisions)
    assert any("no noise level" in note for note in reuse.guard_rails())


@pytest.mark.parametrize("same, noted", [(True, True), (False, False)], ids=["both branches", "two prompts"])
def test_a_batch_of_both_branches_is_no_unguided_branch(same, noted):
    reuse = run_of("fastercache", 12, options={"branch_high": 2000})
    for step in range(4):
        x = torch.randn(1, 4, 2, 3, 3).expand(2, -1, -1, -1, -1) if same else torch.randn(2, 4, 2, 3, 3)
        assert call(reuse, step, "cond_uncond", latents=x, output=torch.ones(2, 4, 2, 3, 3))[0] is False
    assert any("in one batch" in note for note in reuse.guard_rails()) == noted


def test_after_its_last_step_a_branch_holds_nothing():
    reuse = run_of("taylorseer", 6, options=EVERY_THIRD)
    for step in range(6):
        for branch in ("cond", "uncond"):
            call(reuse, step, branch)
    assert reuse.held_bytes() == 0 and reuse.peak_bytes > 0
