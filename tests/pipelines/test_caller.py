"""The loop that calls a transformer, found in the frames of its callers."""

import sys
import weakref

import pytest
import torch

from dittools.pipelines.caller import find_loop


class Scheduler:
    def __init__(self):
        self.timesteps, self.num_inference_steps = torch.linspace(1000, 1, 4), 4


class Model(torch.nn.Module):
    def forward(self, latents, timestep):
        return asked(self, timestep)


def asked(model, timestep):
    return find_loop(model, timestep, None)  # as the hook does: one caller between it and the loop


class Pipeline:
    def __init__(self):
        self.scheduler, self.transformer = Scheduler(), Model()

    def given(self, t):
        return self.transformer(None, t)

    def rounded(self, t):
        return self.transformer(None, (t * 1.0).bfloat16())


def in_a_loop(model):
    scheduler = Scheduler()
    for t in scheduler.timesteps:
        yield model(None, t)


def in_a_function_of_the_loop(model):
    def denoise(t, scheduler):
        return model(None, t)

    scheduler = Scheduler()
    for index in range(4):
        timesteps = scheduler.timesteps
        yield denoise(timesteps[index], scheduler)


def over_what_others_hold(model):
    held = [Scheduler()]
    read = held.__getitem__

    def loop():
        for t in read(0).timesteps:
            yield model(None, t)

    return loop(), held


def in_a_method(model):
    pipe, name = Pipeline(), "given"
    for t in pipe.scheduler.timesteps:
        yield getattr(pipe, name)(t)


class Rounding(Pipeline):
    def __call__(self):
        timesteps = self.scheduler.timesteps
        for one in timesteps:
            yield self.rounded(one * 1.0)


def in_a_method_that_rounds(model):
    return Rounding()()


@pytest.mark.parametrize(
    "loop, known",
    [(in_a_loop, True), (in_a_function_of_the_loop, True), (in_a_method, True), (in_a_method_that_rounds, False)],
)
def test_what_a_run_holds_lives_as_long_as_its_loop_whatever_the_loop_calls(loop, known):
    calls = loop(Model())
    found = [next(calls) for _ in range(4)]
    assert [one.step for one in found] == ([0, 1, 2, 3] if known else [None] * 4)
    assert len({one.life() for one in found}) == 1 and found[0].life() is not None
    calls.close()
    assert found[0].life() is None


def test_a_loop_over_what_is_none_of_its_variables_has_its_own_life():
    loop, held = over_what_others_hold(Model())

    def further_out(scheduler):
        return next(loop)

    found = [further_out(held[0]) for _ in range(4)]
    assert [one.step for one in found] == [0, 1, 2, 3]
    assert len({one.life() for one in found}) == 1 and found[0].life() is not None
    loop.close()
    assert found[0].life() is None


def test_a_loop_that_is_not_among_the_callers_has_a_life_that_nobody_knows():
    scheduler = Scheduler()

    def elsewhere(t, scheduler):
        return Model()(None, t)

    exec("for t in scheduler.timesteps: found = elsewhere(t, scheduler)", names := {**locals()})
    assert names["found"].step == 3 and names["found"].life is None


def test_a_loop_can_let_go_of_what_it_used():
    if sys.gettrace() is not None:
        pytest.skip("a debugger or a tracer holds what it looks at")
    model, scheduler = Model(), Scheduler()
    gone = weakref.ref(model)
    for t in scheduler.timesteps:
        model(None, t)
    del model
    assert gone() is None


def test_variables_that_a_caller_listed_itself_stay():
    model, scheduler = Model(), Scheduler()
    listed = locals()
    for t in scheduler.timesteps:
        model(None, t)
    assert listed["model"] is model


def test_a_stand_in_for_what_is_gone_is_no_concern():
    model, scheduler, stale = Model(), Scheduler(), weakref.proxy(Scheduler())
    for t in scheduler.timesteps:
        assert model(None, t).scheduler is scheduler
    with pytest.raises(ReferenceError):
        stale.timesteps  # noqa: B018
