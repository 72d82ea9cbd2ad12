"""Runs, steps and branches, read from the schedule."""

import pytest
import torch

from dittools.clock import StepClock


def schedule(*values):
    return torch.tensor(values or [900, 700, 500, 300, 100])


def tell_all(clock, timesteps, branches=("cond", "uncond"), values=None):
    values = timesteps.tolist() if values is None else values
    return [clock.tell(torch.tensor([t]), timesteps, branch=b) for t in values for b in branches]


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
    first = clock.tell(900, schedule(), branch="cond")
    second = clock.tell(900, schedule(), branch="cond")
    assert first.new_run and second.new_run


def test_a_timestep_that_jumps_back_in_the_same_branch_starts_a_run():
    clock, timesteps = StepClock(), schedule()
    tell_all(clock, timesteps, values=[900, 700, 500])
    tick = clock.tell(900, timesteps, branch="cond")
    assert (tick.new_run, tick.step) == (True, 0)
    assert not clock.tell(900, timesteps, branch="uncond").new_run


def test_a_branch_that_lags_behind_another_does_not_start_a_run():
    clock, timesteps = StepClock(), schedule()
    assert [clock.tell(t, timesteps, branch="cond").step for t in (900, 700, 500)] == [0, 1, 2]
    late = [clock.tell(t, timesteps, branch="uncond") for t in (900, 700, 500)]
    assert [(t.step, t.new_run) for t in late] == [(0, False), (1, False), (2, False)]


@pytest.mark.parametrize("change", ["shape", "dtype", "device"])
def test_a_new_signature_starts_a_run(change):
    clock, timesteps = StepClock(), schedule()
    clock.tell(900, timesteps, branch="cond", signature=("shape", "dtype", "device"))
    signature = tuple("other" if s == change else s for s in ("shape", "dtype", "device"))
    assert clock.tell(700, timesteps, branch="cond", signature=signature).new_run


def test_a_second_order_schedule_with_doubled_timesteps_gives_every_entry_its_step():
    timesteps = schedule(900, 700, 700, 500, 500, 300, 300)
    ticks = tell_all(StepClock(), timesteps)
    assert [t.step for t in ticks] == [s for s in range(7) for _ in range(2)]
    assert sum(t.new_run for t in ticks) == 1


def test_a_doubled_timestep_without_branch_names_is_told_apart_by_the_calls_of_earlier_steps():
    timesteps = schedule(900, 700, 700, 500, 500)
    clock = StepClock()
    ticks = [clock.tell(t, timesteps) for t in timesteps.tolist() for _ in range(2)]
    assert [t.step for t in ticks] == [s for s in range(5) for _ in range(2)]
    assert [t.branch for t in ticks] == ["call0", "call1"] * 5


def test_a_model_called_twice_in_a_step_by_one_branch_stays_in_that_step():
    ticks = tell_all(StepClock(), schedule(), branches=("cond", "cond"))
    assert [t.step for t in ticks] == [s for s in range(5) for _ in range(2)]
    assert sum(t.new_run for t in ticks) == 1


def test_of_one_timestep_a_token_the_largest_counts():
    per_token = torch.tensor([[0, 0, 500, 500], [0, 0, 500, 500]])
    assert StepClock().tell(per_token, schedule(), branch="cond").step == 2


def test_a_timestep_rounded_on_its_way_finds_the_nearest_entry():
    timesteps = torch.tensor([999.0, 960.7, 800.2])
    assert StepClock().tell(torch.tensor([960.7], dtype=torch.bfloat16), timesteps, branch="c").step == 1


def test_a_step_index_from_the_pipeline_is_used_and_the_timestep_is_not_read():
    class Unread(torch.Tensor):
        def max(self):
            raise AssertionError("read from the device")

    clock, timesteps = StepClock(), schedule(5, 5, 5)
    timestep = torch.tensor([5]).as_subclass(Unread)
    ticks = [clock.tell(timestep, timesteps, branch="cond", step_index=i, steps=3) for i in range(3)]
    assert [t.step for t in ticks] == [0, 1, 2]
    assert clock.tell(timestep, timesteps, branch="cond", step_index=0, steps=3).new_run


def test_without_a_scheduler_the_first_call_is_a_run_of_one_step():
    tick = StepClock(dense_steps=1).tell(500, None, branch="cond")
    assert (tick.new_run, tick.step, tick.steps, tick.dense) == (True, 0, 1, True)


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
