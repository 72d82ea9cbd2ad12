"""Decisions of one run, call by call, without a model: who decides, what is forced, what each branch gets."""

import itertools
import math

import pytest
import torch

from dittools import caches
from dittools.caches.state import Trajectory
from dittools.clock import StepInfo


def run_of(cache, steps=12, *, first=1, last=1, sparse=False, dense=(), options=None):
    forced = tuple(s < first or s >= steps - last for s in range(steps))
    timesteps = tuple(1000.0 * (1 - s / steps) for s in range(steps))
    model = caches.Model("M")
    made = caches.create(cache, options or {}).bind(model)
    return made.begin_run(Trajectory(steps, timesteps, forced, model, sparse))


def value(branch, step, size=(1, 4, 2, 3, 3)):
    """An output that says whose it is and of which step."""
    return torch.full(size, float(step) + {"cond": 100, "uncond": 200, "third": 300}[branch.split("#")[0]])


def call(reuse, step, branch="cond", part=0, dense=False, latents=None, output=None, why=None, noise=0.5):
    """One call: (reused, what the pipeline gets)."""
    steps = reuse.run.steps
    latents = torch.zeros(1, 4, 2, 3, 3) if latents is None else latents
    verdict = reuse.begin(StepInfo(step == 0, step, steps, branch, dense), part, latents, noise, why)
    if verdict is False:
        return True, reuse.predict(latents)[0]
    output = value(branch, step) if output is None else output
    reuse.update(latents, [output])
    return False, output


ONE_COMPUTED = {"interval": 100, "warmup_steps": 1, "taylor_order": 0, "start": 0}
EVERY_THIRD = {"interval": 3, "start": 0, "taylor_order": 0, "warmup_steps": 1, "reuse": "output"}


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
    reuse = run_of("easycache", 20, options={"threshold": 1e9, "warmup_steps": 1, "max_consecutive_skips": 4})
    decisions = []
    for step in range(19):
        x = torch.randn(1, 4, 2, 3, 3)
        call(reuse, step, "cond", latents=x)
        if step < 4 or step >= 14:
            decisions.append((step, call(reuse, step, "uncond", latents=x)[0]))
    assert dict(decisions)[14] is False  # last computed ten steps ago
    assert any(reused for step, reused in decisions if step > 14)


def test_the_first_branch_of_a_step_decides_for_the_others():
    reuse = run_of("easycache", 20, options={"threshold": 3.0, "warmup_steps": 2})
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
    reuse = run_of("taylorseer", 12, options=ONE_COMPUTED)
    seen = [call(reuse, step, part=int(step >= 5)) for step in range(11)]
    assert [reused for reused, _ in seen] == [False, *[True] * 4, False, *[True] * 5]
    assert torch.equal(seen[9][1], value("cond", 5))
    # What the first expert gave is not held any more.
    assert len(reuse.tensors()) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_signal_that_is_not_finite_computes_and_is_counted(bad):
    reuse = run_of("easycache", 12, options={"threshold": 1e9, "warmup_steps": 2})
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
    reuse = run_of(
        "taylorseer", 12, sparse=True, options={"interval": 100, "warmup_steps": 1, "taylor_order": 0, "start": 0}
    )
    decisions = [call(reuse, step, dense=step < 4 or step >= 8)[0] for step in range(11)]
    assert [step for step, reused in enumerate(decisions) if not reused] == [0, 4, 8]
    assert [entry.why for entry in reuse.log if not entry.reused][1:] == [
        "attention switches between dense and sparse"
    ] * 2


def test_in_a_dense_run_the_schedule_of_attention_means_nothing():
    reuse = run_of(
        "taylorseer", 12, sparse=False, options={"interval": 100, "warmup_steps": 1, "taylor_order": 0, "start": 0}
    )
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
    reuse = run_of("easycache", 20, first=2, options={"threshold": threshold, "warmup_steps": 2})
    tensor = lambda number: torch.full((1, 1, 1, 1, 1), number)  # noqa: E731
    got = [call(reuse, s, latents=tensor(x), output=tensor(v))[0] for s, (x, v) in enumerate(zip(xs, vs, strict=True))]
    assert got == expected and 0 < sum(expected) < 6


def watch(reuse, step, residual, branch="cond"):
    verdict = reuse.begin(StepInfo(step == 0, step, reuse.run.steps, branch, False), 0, torch.zeros(1, 4), None)
    if verdict is None:
        verdict = reuse.watch(residual)
    if verdict:
        reuse.update(torch.zeros(1, 4), [torch.zeros(1, 4) + step])
        return False
    reuse.predict(torch.zeros(1, 4))
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
        verdict = reuse.begin(StepInfo(False, step, 12, "uncond", False), 0, torch.zeros(1, 4), None)
        assert verdict is (step == 0)
        if verdict:
            reuse.update(torch.zeros(1, 4), [torch.zeros(1, 4)])


def notes_of(cache, steps, forced=1, growing=False, **options):
    reuse = run_of(cache, steps, first=forced, options=options)
    for step in range(steps):
        values = torch.full((1, 4, 2, 3, 3), 1.0 + step * growing)
        call(reuse, step, latents=values, output=values)
    return " | ".join(reuse.guard_rails())


def test_guard_rails_speak_where_they_should_and_only_there():
    third = {key: EVERY_THIRD[key] for key in ("interval", "start", "taylor_order", "warmup_steps")}
    assert notes_of("taylorseer", 30, **third | {"interval": 2}) == ""
    assert "each one matters" in notes_of("taylorseer", 10, **third)
    assert "expect another picture, compute more steps" in notes_of("taylorseer", 30, **third | {"interval": 9})
    assert "reused: its rules compute every step" in notes_of("taylorseer", 30, forced=30, interval=100, start=0)
    assert "reused: its rules compute every step" in notes_of("easycache", 3, forced=2, threshold=5.0)
    assert "expect another picture, lower the threshold" in notes_of("easycache", 30, growing=True, threshold=9.0)
    assert "reused: raise the threshold" in notes_of("easycache", 30, growing=True, threshold=1e-6)
    assert "no step lies within its window" in notes_of("pab", 30, low=1, high=2)
    assert notes_of("taylorseer", 10, interval=1) == ""
    rest = {"interval": 100, "start": 0}
    assert notes_of("taylorseer", 30, forced=11, **rest) == ""  # 18 of 30 reused
    assert "19 of 30 calls were reused" in notes_of("taylorseer", 30, forced=10, **rest)
    assert notes_of("taylorseer", 11, forced=5, **rest) == ""


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


# Calls that are not like the kept one

HUGE = {
    "taylorseer": {"interval": 100, "start": 0, "taylor_order": 1, "warmup_steps": 2, "cooldown_steps": 0},
    "easycache": {"threshold": 1e9, "warmup_steps": 2, "max_consecutive_skips": 0},
    "sea": {"threshold": 1e9, "max_consecutive_skips": 0},
}


@pytest.mark.parametrize("reuse_as", ["output", "delta"])
@pytest.mark.parametrize("cache", HUGE)
def test_a_call_of_another_batch_or_size_is_computed_and_history_starts_anew(cache, reuse_as):
    reuse = run_of(cache, 20, options=HUGE[cache] | {"reuse": reuse_as})
    sizes = [(2, 4, 2, 3, 3)] * 5 + [(1, 4, 2, 3, 3)] * 5 + [(1, 4, 2, 3, 5)] * 4 + [(2, 4, 2, 3, 3)] * 4
    reused = []
    for step, size in enumerate(sizes):
        torch.manual_seed(step)
        reused_now, got = call(reuse, step, latents=torch.randn(size), output=torch.randn(size))
        assert got.shape == size
        reused.append(reused_now)
    assert [reused[at] for at in (5, 10, 14)] == [False] * 3
    assert all(reused[at] for at in (4, 9, 13, 17))
    whys = [entry.why for entry in reuse.log if entry.step in (5, 10, 14)]
    assert whys == ["nothing to reuse yet"] * 3


def test_a_slope_is_never_taken_across_calls_of_different_forms():
    reuse = run_of("taylorseer", 20, options={"interval": 2, "start": 0, "taylor_order": 1, "warmup_steps": 1})
    for step in range(4):
        call(reuse, step, latents=torch.zeros(2, 4), output=torch.full((2, 4), 100.0 * step))
    call(reuse, 4, latents=torch.zeros(1, 4), output=torch.full((1, 4), 7.0))
    assert torch.equal(call(reuse, 5, latents=torch.zeros(1, 4))[1], torch.full((1, 4), 7.0))
    call(reuse, 6, latents=torch.zeros(1, 4), output=torch.full((1, 4), 9.0))
    assert torch.equal(call(reuse, 7, latents=torch.zeros(1, 4))[1], torch.full((1, 4), 10.0))


def test_a_call_with_other_text_or_settings_is_computed_whatever_its_latents():
    reuse = run_of("taylorseer", 20, options=HUGE["taylorseer"] | {"warmup_steps": 1})
    latents, reused = torch.zeros(1, 4), []
    for step, form in enumerate(["short", "short", "long", "long", "short"]):
        verdict = reuse.begin(StepInfo(step == 0, step, 20, "cond", False), 0, latents, None, form=form)
        reused.append(verdict is False)
        reuse.predict(latents) if verdict is False else reuse.update(latents, [latents])
    assert reused == [False, True, False, True, False]


@pytest.mark.parametrize("cache, options", [("taylorseer", EVERY_THIRD), ("easycache", HUGE["easycache"])])
def test_a_branch_that_missed_a_computed_step_is_computed_when_it_comes_back(cache, options):
    reuse = run_of(cache, 20, options=options)
    x, at = torch.randn(1, 4, 2, 3, 3), 6
    decisions = {}
    for step in range(9):
        why = "asked" if step == at else None  # a computed step
        call(reuse, step, "cond", latents=x * (1 + step), why=why)
        if step < 5 or step > 6:
            decisions[step] = call(reuse, step, "uncond", latents=x * (1 + step))[0]
    assert decisions[4] and not decisions[7] and decisions[8]
    entry = next(entry for entry in reuse.log if entry.step == 7 and entry.branch == "uncond")
    assert entry.why == "a computed step was missed"


def test_steps_of_the_schedule_that_never_came_leave_nothing_older_than_its_interval():
    reuse = run_of("taylorseer", 20, options=EVERY_THIRD)
    ages, last = [], None
    for step in (0, 1, 2, 4, 5, 7, 8, 9, 11, 14):  # 3, 6 and 12 are computed ones
        reused = call(reuse, step)[0]
        last = last if reused else step
        ages.append(step - last)
    assert max(ages) <= 2 and sum(age > 0 for age in ages) == 5


def test_a_schedule_that_computes_the_very_next_step_does_not_reuse_over_it():
    reuse = run_of("taylorseer", 20, options={"interval": 100, "start": 1, "taylor_order": 0, "warmup_steps": 1})
    assert [call(reuse, step)[0] for step in (0, 2, 3)] == [False, False, True]


def test_no_more_steps_than_allowed_are_reused_in_a_row():
    reuse = run_of("easycache", 20, options={"threshold": 1e9, "warmup_steps": 2, "max_consecutive_skips": 3})
    reused = [call(reuse, step, latents=torch.randn(1, 4, 2, 3, 3))[0] for step in range(9)]
    assert [step for step, one in enumerate(reused) if not one] == [0, 1, 5]


def test_of_packed_latents_the_difference_of_the_branches_is_added_as_it_is():
    reuse = run_of("fastercache", 12, options={"interval": 1, "branch_interval": 3, "branch_high": 2000})
    packed, guided = torch.zeros(1, 6, 4), torch.randn(1, 6, 4)
    for step in range(2):
        call(reuse, step, "cond", latents=packed, output=guided + step)
        reused, out = call(reuse, step, "uncond", latents=packed, output=guided + 5.0)
    assert reused
    torch.testing.assert_close(out, guided + 1 + 5.0)
    assert any("packed" in note for note in reuse.guard_rails())


def attend(reuse, step, computed, branch="cond", size=(1, 5, 2, 4)):
    """One layer's attention in a call that runs: (reused, what it gives)."""
    reuse.begin(StepInfo(step == 0, step, reuse.run.steps, branch, False), 0, torch.zeros(1, 4), None)
    kept = reuse.attention(0, torch.zeros(size))
    if kept is None:
        kept = torch.full(size, float(computed))
        reuse.keep_attention(0, kept)
        reuse.update(torch.zeros(1, 4), [torch.zeros(1, 4)])
        return False, kept
    reuse.update(torch.zeros(1, 4), [torch.zeros(1, 4)])
    return True, kept


def test_fastercache_extrapolates_attention_from_the_two_latest_computed_ones():
    reuse = run_of("fastercache", 12, options={"high": 2000, "weight": 0.25, "branch_interval": 1})
    seen = [attend(reuse, step, value) for step, value in enumerate((2.0, 0, 6.0, 0, 5.0, 0))]
    assert [reused for reused, _ in seen] == [False, True] * 3
    # One alone is given as it is; from 2 and then 6 it goes on to 7, from 6 and then 5 to 4.75.
    assert [float(out.mean()) for reused, out in seen if reused] == [2.0, 7.0, 4.75]


def test_attention_that_is_as_old_as_the_interval_is_not_reused():
    reuse = run_of("pab", 12, options={"low": 0, "high": 2000, "interval": 2})
    assert [attend(reuse, step, step)[0] for step in (0, 1, 3, 4, 5)] == [False, True, False, False, True]
    assert [attend(reuse, step, step)[0] for step in (6, 7)] == [False, True]
    reuse = run_of("pab", 12, options={"low": 0, "high": 2000, "interval": 2})
    assert [attend(reuse, step, step)[0] for step in (1, 3)] == [False, False]  # step 2 is one to compute


def test_attention_of_other_queries_is_not_reused():
    reuse = run_of("pab", 12, options={"low": 0, "high": 2000, "interval": 2})
    attend(reuse, 0, 0)
    assert attend(reuse, 1, 0, size=(1, 6, 2, 4))[0] is False


def test_fastercache_raises_a_difference_by_the_uses_within_each_window_and_keeps_it():
    """Low frequencies between timesteps 99 and 901, high ones below 301; each computed branch starts anew."""
    options = {"interval": 1, "branch_interval": 4, "branch_high": 2000, "low_gain": 1.5, "high_gain": 2.0}
    reuse, got = run_of("fastercache", 12, options=options), {}  # timesteps 1000, 917, 833, .. 83
    flat, stripes = torch.ones(1, 1, 1, 10, 10), torch.tensor([1.0, -1.0]).repeat(5).expand(1, 1, 1, 10, 10)
    for step in range(12):
        guided = torch.full_like(flat, 10.0)
        call(reuse, step, "cond", latents=flat, output=guided)
        reused, out = call(reuse, step, "uncond", latents=flat, output=guided + flat + stripes)
        if reused:
            difference = out - guided
            got[step] = round(float(difference.mean()), 3), round(float((difference * stripes).mean()), 3)
    low, high = {}, {}
    for start in (0, 4, 8):
        a = b = 1.0
        for step in range(start + 1, min(start + 4, 11)):
            t = 1000 * (1 - step / 12)
            a, b = a * (1.5 if 99 < t < 901 else 1), b * (2.0 if t < 301 else 1)
            low[step], high[step] = round(a, 3), round(b, 3)
    assert got == {step: (low[step], high[step]) for step in low}
    # Before its window a use adds nothing.
    assert (got[1], got[2], got[3]) == ((1.0, 1.0), (1.5, 1.0), (2.25, 1.0)) and high[10] == 4.0


@pytest.mark.parametrize("reuse_as", ["output", "delta"])
def test_what_a_pipeline_writes_into_what_it_was_given_changes_nothing_that_is_kept(reuse_as):
    reuse = run_of("taylorseer", 9, options=EVERY_THIRD | {"reuse": reuse_as})
    latents = torch.zeros(1, 4, 2, 3, 3)
    for step in range(3):
        got = call(reuse, step, latents=latents)[1]
        assert torch.equal(got, value("cond", 0))
        got.zero_()


def test_the_most_that_was_held_is_told_when_less_is_held_later():
    reuse = run_of("taylorseer", 12, options=ONE_COMPUTED)
    for branch in ("cond", "uncond"):
        call(reuse, 0, branch)
    one = value("cond", 0).nbytes
    call(reuse, 5, part=1)
    assert reuse.held_bytes() == one and reuse.peak_bytes == 2 * one


@pytest.mark.parametrize("threshold, reused", [(0.5, False), (0.51, True)])
def test_a_threshold_that_is_just_reached_computes(threshold, reused):
    reuse = run_of("first_block", 12, options={"threshold": threshold, "sample": 1})
    assert [watch(reuse, step, torch.full((1, 5, 8), size)) for step, size in enumerate((1.0, 1.5))] == [False, reused]
    one = lambda number: torch.full((1, 1, 1, 1, 1), number)  # noqa: E731
    reuse = run_of("easycache", 12, first=2, options={"threshold": threshold, "warmup_steps": 2})
    run = [(4.0, 1.0), (3.0, 2.0), (2.0, 2.0)]  # rate 1, moved 1, size 2: exactly 0.5
    assert [call(reuse, step, latents=one(x), output=one(v))[0] for step, (x, v) in enumerate(run)][2] is reused
    assert reuse.log[2].signal == 0.5


def test_a_change_is_measured_against_what_was_there_before():
    from dittools.caches.base import relative_change

    before, now = torch.tensor([2.0, -2.0]), torch.tensor([3.0, -3.0])
    assert relative_change(now, before) == 0.5 and relative_change(before, now) == pytest.approx(1 / 3)


def test_signals_are_of_the_channels_that_the_output_speaks_of():
    """Conditioning behind the latents, and variances behind the output, change nothing."""
    torch.manual_seed(0)
    xs, outs = torch.randn(8, 1, 4, 2, 3, 3), torch.randn(8, 1, 4, 2, 3, 3)
    more, runs = torch.full((1, 5, 2, 3, 3), 3.0), []
    for cache in ("easycache", "sea"):
        for wide, learned in ((False, False), (True, False), (False, True)):
            reuse = run_of(cache, 20, options={"threshold": 1e-9, "warmup_steps": 1})
            for step in range(8):
                x = torch.cat([xs[step], more], 1) if wide else xs[step]
                out = torch.cat([outs[step], torch.randn(1, 4, 2, 3, 3)], 1) if learned else outs[step]
                call(reuse, step, latents=x, output=out)
            first = {"easycache": 2, "sea": 1}[cache]  # a rate takes two computed steps
            runs.append([entry.signal for entry in reuse.log][first:])
        plain, wide, learned = runs[-3:]
        assert wide == pytest.approx(plain) and learned == pytest.approx(plain) and min(plain) > 0


@pytest.mark.parametrize("axis", [1, 2, -1])
def test_sea_filters_over_frames_rows_and_columns_wherever_the_channels_are(axis):
    from dittools.caches.sea import wiener

    torch.manual_seed(0)
    xs = torch.randn(3, 1, 4, 2, 3, 5)
    model = caches.Model("M", channels=axis)
    forced, timesteps = (True, *[False] * 11), tuple(range(12, 0, -1))
    reuse = caches.create("sea", {"threshold": 1e9}).bind(model).begin_run(Trajectory(12, timesteps, forced, model))
    for step in range(3):
        call(reuse, step, latents=xs[step].movedim(1, axis), output=xs[step].movedim(1, axis))
    pictures = [wiener(x, 0.5, 3.0) for x in xs]
    moved = [float((b - a).abs().mean() / a.abs().mean()) for a, b in itertools.pairwise(pictures)]
    assert [entry.signal for entry in reuse.log][1:] == pytest.approx(moved, rel=1e-4)


@pytest.mark.parametrize("noise", [1.0, 0.0])
def test_sea_judges_the_step_after_one_of_noise_alone_or_none(noise):
    reuse = run_of("sea", 12, options={"threshold": 1e9})
    for step, share in enumerate((noise, 0.9)):
        call(reuse, step, latents=torch.randn(1, 4, 2, 3, 3), noise=share)
    assert math.isfinite(reuse.log[1].signal) and reuse.bad_signals == 0 and reuse.log[1].reused
