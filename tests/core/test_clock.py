"""Runs, steps and branches, read from the schedule."""

import pytest
import torch

from dittools.clock import StepClock
from dittools.timesteps import place_in, read


def schedule(*values):
    return torch.tensor(values or [900, 700, 500, 300, 100])


def tell_all(clock, timesteps, branches=("cond", "uncond"), values=None):
    values = timesteps.tolist() if values is None else values
    return [clock.observe(torch.tensor([t]), timesteps, branch=b) for t in values for b in branches]


def test_steps_follow_the_schedule_whatever_the_number_of_calls():
    ticks = tell_all(StepClock(), schedule(), branches=("cond", "uncond", "extra"))
    assert [t.step for t in ticks] == [s for s in range(5) for _ in range(3)]
    assert {t.steps for t in ticks} == {5}
    assert [t.new_run for t in ticks] == [True] + [False] * 14


def test_skipped_steps_are_skipped_and_not_counted_up():
    clock, timesteps = StepClock(), schedule()
    ticks = tell_all(clock, timesteps, branches=("cond",), values=[900, 300, 100])
    assert [t.step for t in ticks] == [0, 3, 4]


def test_a_new_schedule_starts_a_run_even_with_the_same_values_and_timestep():
    clock = StepClock()
    first = clock.observe(900, schedule(), branch="cond")
    second = clock.observe(900, schedule(), branch="cond")
    assert first.new_run and second.new_run


def test_a_timestep_that_jumps_back_in_the_same_branch_starts_a_run():
    clock, timesteps = StepClock(), schedule()
    tell_all(clock, timesteps, values=[900, 700, 500])
    step_info = clock.observe(900, timesteps, branch="cond")
    assert (step_info.new_run, step_info.step) == (True, 0)
    assert not clock.observe(900, timesteps, branch="uncond").new_run


def test_a_branch_that_lags_behind_another_does_not_start_a_run():
    clock, timesteps = StepClock(), schedule()
    assert [clock.observe(t, timesteps, branch="cond").step for t in (900, 700, 500)] == [0, 1, 2]
    late = [clock.observe(t, timesteps, branch="uncond") for t in (900, 700, 500)]
    assert [(t.step, t.new_run) for t in late] == [(0, False), (1, False), (2, False)]


def test_another_size_in_a_later_step_of_the_same_schedule_is_the_same_run():
    clock, timesteps = StepClock(), schedule()
    assert clock.observe(900, timesteps, branch="cond", signature="with references").new_run
    assert not clock.observe(900, timesteps, branch="uncond", signature="without").new_run
    step_info = clock.observe(700, timesteps, branch="cond", signature="without")
    assert (step_info.new_run, step_info.step) == (False, 1)


def test_another_size_in_the_same_step_and_branch_starts_a_run():
    clock, timesteps = StepClock(), schedule()
    clock.observe(900, timesteps, branch="cond", signature="small")
    assert clock.observe(900, timesteps, branch="cond", signature="large").new_run


def test_a_second_order_schedule_with_doubled_timesteps_gives_every_entry_its_step():
    timesteps = schedule(900, 700, 700, 500, 500, 300, 300)
    ticks = tell_all(StepClock(), timesteps)
    assert [t.step for t in ticks] == [s for s in range(7) for _ in range(2)]
    assert sum(t.new_run for t in ticks) == 1


def test_a_doubled_timestep_without_branch_names_is_told_apart_by_the_calls_of_earlier_steps():
    timesteps = schedule(900, 700, 700, 500, 500)
    clock = StepClock()
    ticks = [clock.observe(t, timesteps) for t in timesteps.tolist() for _ in range(2)]
    assert [t.step for t in ticks] == [s for s in range(5) for _ in range(2)]
    assert [t.branch for t in ticks] == ["call0", "call1"] * 5


def test_a_model_called_twice_in_a_step_by_one_branch_stays_in_that_step():
    ticks = tell_all(StepClock(), schedule(), branches=("cond", "cond"))
    assert [t.step for t in ticks] == [s for s in range(5) for _ in range(2)]
    assert sum(t.new_run for t in ticks) == 1


def test_of_one_timestep_a_token_the_largest_counts():
    per_token = torch.tensor([[0, 0, 500, 500], [0, 0, 500, 500]])
    assert StepClock().observe(per_token, schedule(), branch="cond").step == 2


@pytest.mark.parametrize("shift", [1.0, 7.0, 17.0])
@pytest.mark.parametrize(
    "convert", [lambda t: t, lambda t: t * 1000, lambda t: (1 - t) * 1000], ids=["t", "t/1000", "1-t/1000"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_step_is_seen_once_when_timesteps_are_rounded_on_their_way(dtype, convert, shift):
    sigmas = torch.linspace(1, 1 / 50, 50)
    timesteps = 1000 * shift * sigmas / (1 + (shift - 1) * sigmas)
    there = (lambda t: (1000 - t) / 1000) if convert(0.0) else (lambda t: t / (convert(1.0)))
    clock, steps = StepClock(), []
    for t in timesteps:
        given = there(t.expand(2).to(dtype))
        for branch in ("cond", "uncond"):
            steps.append(clock.observe(lambda given=given: read(given, convert), timesteps, branch=branch).step)
    assert steps == [step for step in range(50) for _ in range(2)]


def test_a_timestep_that_is_in_no_step_of_a_running_schedule_is_unknown_and_changes_nothing():
    clock, timesteps = StepClock(), schedule()
    clock.observe(900, timesteps, branch="cond")
    step_info = clock.observe(640, timesteps, branch="cond")
    assert (step_info.known, step_info.dense, step_info.new_run) == (False, True, False) and clock.strange == 640
    assert clock.observe(700, timesteps, branch="cond").step == 1


def test_of_one_timestep_a_token_only_the_largest_is_not_taken_for_the_step():
    clock, timesteps = StepClock(), schedule()
    rows = [[900, 900, 900], [700, 900, 900], [500, 700, 900]]
    ticks = [clock.observe(torch.tensor([row]), timesteps, branch="cond") for row in rows]
    assert [t.known for t in ticks] == [True, False, False]


def test_rows_of_one_timestep_a_frame_are_the_steps():
    rows = torch.tensor([[999.0, 999, 999], [700, 999, 999], [300, 700, 999], [0, 300, 700]])
    clock = StepClock(0.25, 1)
    ticks = [clock.observe(row.expand(2, -1), rows, branch=branch) for row in rows for branch in ("cond", "uncond")]
    assert [t.step for t in ticks] == [0, 0, 1, 1, 2, 2, 3, 3] and {t.steps for t in ticks} == {4}
    assert [t.dense for t in ticks[::2]] == [True, False, False, True]
    assert clock.timesteps(4) == (999.0, 999.0, 999.0, 700.0)


@pytest.mark.parametrize("name", ["uncond", None])
@pytest.mark.parametrize("start", [0, 1, 2, 4])
def test_a_view_of_the_schedule_tells_its_step_where_timesteps_repeat(start, name):
    timesteps = schedule(900, 900, 700, 700, 500, 500)
    clock, names = StepClock(), ("cond", name) if name else (None, None)
    ticks = [clock.observe(t.expand(3), timesteps, branch=b) for t in timesteps[start:] for b in names]
    assert [t.step for t in ticks] == [step for step in range(start, 6) for _ in range(2)]
    assert {t.first for t in ticks} == {start} and sum(t.new_run for t in ticks) == 1


def test_memory_that_only_looks_alike_is_no_view():
    timesteps = schedule()
    for part in (timesteps[1:3], timesteps.clone()[1], timesteps.float()[1], 700, timesteps[1:2].expand(4)[1:].clone()):
        assert place_in(part, timesteps) is None
    assert [place_in(t, timesteps[2:]) for t in timesteps] == [None, None, 0, 1, 2]
    assert place_in(timesteps[1], timesteps[0].expand(5)) is None


def test_a_step_index_from_the_pipeline_is_used_and_the_timestep_is_not_read():
    class Unread(torch.Tensor):
        def max(self):
            raise AssertionError("read from the device")

    clock, timesteps = StepClock(), schedule(5, 5, 5)
    timestep = torch.tensor([5]).as_subclass(Unread)
    ticks = [clock.observe(timestep, timesteps, branch="cond", step_index=i, steps=3) for i in range(3)]
    assert [t.step for t in ticks] == [0, 1, 2]
    assert clock.observe(timestep, timesteps, branch="cond", step_index=0, steps=3).new_run


def test_without_a_schedule_steps_are_counted_and_their_number_is_not_known():
    clock = StepClock(dense_steps=1)
    values = [1.0, 1.0, 0.6, 0.6, 0.2, 0.2]
    ticks = [clock.observe(t, None, branch=b) for t, b in zip(values, ("cond", "uncond") * 3, strict=True)]
    assert [(t.step, t.steps, t.dense) for t in ticks[::2]] == [(0, 1, True), (1, 2, False), (2, 3, False)]
    assert [t.new_run for t in ticks] == [True] + [False] * 5 and all(t.counted for t in ticks)
    again = clock.observe(0.9, None, branch="cond")
    assert (again.new_run, again.step) == (True, 0)


@pytest.mark.parametrize("settings", [(0.2, 0), (0, 1), (0, 0.1)])
def test_what_depends_on_the_number_of_steps_is_dense_where_nobody_knows_it(settings):
    clock = StepClock(*settings)
    assert all(clock.observe(t, None, branch="cond").dense for t in (9, 8, 7)) and clock.needs_all_steps()


def test_a_schedule_of_which_no_call_is_does_not_start_a_run_at_every_call():
    clock, stale = StepClock(), schedule()
    tell_all(clock, stale, branches=("cond",))
    ticks = [clock.observe(t, stale, branch="cond") for t in (850, 640, 420)]
    assert [(t.new_run, t.step, t.counted) for t in ticks] == [(True, 0, True), (False, 1, True), (False, 2, True)]


@pytest.mark.parametrize(
    "first, last, dense", [(0.5, 0, "--110"), (2, 0, "--110"), (0, 1, "--001"), (0.4, 0.4, "--101")]
)
def test_dense_steps_count_the_steps_that_run_where_a_schedule_is_entered_late(first, last, dense):
    ticks = tell_all(StepClock(first, last), schedule(), branches=("cond",), values=[500, 300, 100])
    assert "--" + "".join(str(int(t.dense)) for t in ticks) == dense


@pytest.mark.parametrize(
    "first, last, dense",
    [
        (2, 0, "11000"),
        (0.4, 0, "11000"),
        (0.0, 0, "00000"),
        (0, 1, "00001"),
        (0.2, 0.2, "10001"),
        (1.0, 0, "11111"),
    ],
)
def test_dense_steps_are_the_first_and_last_as_asked(first, last, dense):
    ticks = tell_all(StepClock(first, last), schedule(), branches=("cond",))
    assert "".join(str(int(t.dense)) for t in ticks) == dense
