"""Runs of an accelerated pipeline: schedules, counts, state between runs, and results that go wrong."""

import pytest
import torch

import dittools
from dittools import methods
from tests.tiny import draw, svg, tiny_pipeline


@pytest.fixture(scope="module")
def shared():
    """One pipeline for tests that restore it."""
    return tiny_pipeline()


def test_a_full_budget_gives_the_dense_result(shared):
    dense = draw(shared)
    with svg(shared, sparsity=0.0, dense_steps=0, dense_layers=0) as fast:
        out = draw(shared)
    assert fast.record()["calls"] == {"dense": 0, "sparse": 24, "reused": 0, "expected": 24}
    assert fast.record()["sparsity"]["sparse_calls"] == 0
    torch.testing.assert_close(out, dense, rtol=1e-3, atol=1e-4)


def test_method_dense_is_bit_identical_and_timed(shared):
    dense = draw(shared)
    with dittools.accelerate(shared, method="dense") as fast:
        assert torch.equal(draw(shared), dense)
    record = fast.record()
    assert record["calls"] == {"dense": 24, "sparse": 0, "reused": 0, "expected": 24}
    assert record["fallbacks"] == [] and len(record["step_seconds"]) == 4


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.8])
@pytest.mark.parametrize(
    "size, grid",
    [
        ((17, 160, 176), (5, 10, 11)),
        ((25, 112, 272), (7, 7, 17)),
        ((33, 160, 144), (9, 10, 9)),
        ((13, 240, 336), (4, 15, 21)),
    ],
    ids=str,
)
def test_sparse_calls_skip_what_was_asked_on_any_grid(shared, size, grid, sparsity):
    frames, height, width = size
    with svg(shared, sparsity=sparsity) as fast:
        draw(shared, frames=frames, height=height, width=width, steps=2)
    record = fast.record()
    assert (record["grid"]["frames"], record["grid"]["height"], record["grid"]["width"]) == grid
    assert record["sparsity"]["sparse_calls"] == pytest.approx(sparsity, abs=0.02)
    # 2 of 3 layers in 1 of 2 steps ran sparse.
    assert record["sparsity"]["overall"] == pytest.approx(record["sparsity"]["sparse_calls"] / 3)


def test_dense_steps_and_layers_are_those_asked_for(shared):
    with svg(shared, dense_steps=0.4, dense_last_steps=1, dense_layers=2) as fast:
        draw(shared, steps=5)
    sparsity = fast.record()["sparsity"]
    assert [s > 0 for s in sparsity["per_step"]] == [False, False, True, True, False]
    assert [s > 0 for s in sparsity["per_layer"]] == [False, False, True]
    assert fast.record()["calls"] == {"dense": 30 - 4, "sparse": 4, "reused": 0, "expected": 30}


def test_the_record_has_the_keys_it_promises(shared):
    fast = svg(shared)
    empty = fast.record()
    draw(shared)
    record = fast.record()
    fast.restore()
    keys = "method method_options correction steps grid sparsity calls kernels kernel_reasons cache fallbacks heads"
    assert set(record) == set(empty) == {*keys.split(), "step_seconds", "notes", "attention_error"}
    shares = {"asked", "sparse_calls", "overall", "per_step", "per_layer", "by_parts", "pairs_by_parts"}
    assert set(record["sparsity"]) == shares
    assert empty["sparsity"]["sparse_calls"] is None and empty["grid"] is None
    assert record["grid"] == {"frames": 5, "height": 10, "width": 11, "text": 0, "tokens": 550}
    assert record["cache"] == {"name": "none", "computed_steps": [0, 1, 2, 3], "reused_steps": []}
    assert record["heads"][0] == {}
    # 3 sparse steps, 2 heads; the second branch uses the plan of the first.
    assert all(h["spatial"] + h["temporal"] == 6 for h in record["heads"][1:])
    import json

    json.dumps(record)


def test_the_summary_names_what_happened(shared):
    with svg(shared) as fast:
        assert "no run yet" in fast.summary()
        draw(shared)
        text = fast.summary()
    assert "asked 0.700" in text and "12 dense, 12 sparse, 0 reused" in text
    assert "5 x 10 x 11 = 550 tokens" in text and "spatial" in text


def test_auto_stays_dense_on_few_tokens_and_says_why(shared):
    dense = draw(shared)
    with dittools.accelerate(shared, sparsity=0.7, dense_steps=1) as fast:
        assert torch.equal(draw(shared), dense)
        record = fast.record()
        assert "550 video tokens are too few" in fast.summary()
    assert record["method"] == "dense" and record["method_options"] == {}
    # Only calls that would have been sparse count as fallbacks.
    assert [f["count"] for f in record["fallbacks"]] == [12]


def test_auto_runs_sparse_where_there_are_enough_tokens(shared):
    with dittools.accelerate(shared, sparsity=0.7) as fast:
        draw(shared, frames=17, height=288, width=288, steps=2)
    assert fast.record()["method"] == "adaspa" and fast.record()["calls"]["sparse"] > 0
    assert fast.record()["method_options"] == {"rows": 8}
    assert fast.summary().startswith("method    adaspa (rows=8), asked auto, correction sampled\n")
    assert fast.record()["correction"] == "sampled"
    assert fast.record()["sparsity"]["sparse_calls"] == pytest.approx(0.7, abs=0.02)
    with dittools.accelerate(shared, sparsity=0.7, correction="none") as fast:
        draw(shared, frames=17, height=288, width=288, steps=2)
    assert fast.summary().startswith("method    adaspa (rows=8), asked auto\n")


def test_whatever_auto_picks_its_options_are_told(shared, monkeypatch):
    enough = {"frames": 17, "height": 288, "width": 288, "steps": 2}
    for options, told in (({}, "svg"), ({"probe_rows": 20, "sink": False}, "svg (probe_rows=20, sink=False)")):
        picked = methods.create("svg", options)
        monkeypatch.setattr(methods.auto, "pick", lambda steps, grid, device, method=picked: method)
        with dittools.accelerate(shared, sparsity=0.7) as fast:
            draw(shared, **enough)
        assert fast.record()["method"] == "svg" and fast.record()["method_options"] == options
        assert fast.summary().startswith(f"method    {told}, asked auto, correction sampled\n")


def test_options_of_a_method_asked_for_by_name_are_told_too(shared):
    with svg(shared, probe_rows=20, sink=True) as fast:
        draw(shared)
    assert fast.record()["method_options"] == {"probe_rows": 20}  # a sink is the default
    assert fast.summary().startswith("method    svg (probe_rows=20)\n")


def test_a_method_asked_for_by_name_leaves_a_grid_that_is_too_small_dense_and_says_so(shared):
    dense = draw(shared, height=48, width=112)
    with svg(shared) as fast:
        assert torch.equal(draw(shared, height=48, width=112), dense)
        record = fast.record()
        ((why, count),) = [(f["reason"], f["count"]) for f in record["fallbacks"]]
        assert "at least 4 blocks of 64 tokens" in why and "has 105 (5 x 3 x 7)" in why and count == 12
        assert record["calls"]["sparse"] == 0 and any("use more frames, a larger size" in n for n in record["notes"])
        draw(shared)
        assert fast.record()["calls"]["sparse"] == 12 and fast.record()["fallbacks"] == []


def test_a_batch_gives_each_video_what_it_gets_alone(shared):
    one = torch.randn(1, 16, 5, 20, 22, generator=torch.Generator().manual_seed(1))
    two = torch.randn(1, 16, 5, 20, 22, generator=torch.Generator().manual_seed(2))
    prompts = ["a red circle moves left", "a blue square moves up"]
    with svg(shared) as fast:
        alone = [draw(shared, latents=x.clone(), prompt=p) for x, p in zip((one, two), prompts, strict=True)]
        both = draw(shared, latents=torch.cat((one, two)), prompt=prompts)
        assert fast.record()["calls"] == {"dense": 12, "sparse": 12, "reused": 0, "expected": 24}
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(alone[0], alone[1], atol=0.1)


def test_without_guidance_there_is_one_branch(shared):
    with svg(shared) as fast:
        draw(shared, guidance_scale=1.0)
    assert fast.record()["calls"] == {"dense": 6, "sparse": 6, "reused": 0, "expected": 12}


def test_each_branch_has_plans_of_its_own_and_refresh_says_for_how_long(shared, monkeypatch):
    made = []
    plan = methods.METHODS["svg"].plan

    def counted(self, q, k, v, call):
        made.append((call.layer, call.branch, call.step))
        return plan(self, q, k, v, call)

    monkeypatch.setattr(methods.METHODS["svg"], "plan", counted)
    with svg(shared, refresh=3, dense_layers=2, share_branches=False) as fast:
        draw(shared, steps=6)
    assert made == [(2, branch, step) for step in (1, 4) for branch in ("cond", "uncond")]
    assert fast.record()["calls"]["sparse"] == 10
    assert "6 plans used again" in fast.summary()
    assert fast.record()["sparsity"]["sparse_calls"] == pytest.approx(0.7, abs=0.02)


def test_the_same_seed_repeats_and_counters_are_of_the_latest_run(shared):
    with svg(shared) as fast:
        first, record = draw(shared), fast.record()
        assert torch.equal(draw(shared), first)
        again = fast.record()
        for key in ("sparsity", "calls", "heads", "fallbacks", "cache"):
            assert again[key] == record[key]
        draw(shared, steps=2)
        assert len(fast.record()["step_seconds"]) == 2


@pytest.mark.parametrize("how", ["exception", "interrupt"])
def test_a_run_broken_off_leaves_nothing_in_the_next(how):
    pipe = tiny_pipeline()
    svg(pipe, refresh=4)
    fresh = draw(pipe)
    pipe = tiny_pipeline()
    fast = svg(pipe, refresh=4)

    def stop(p, step, timestep, kwargs):
        if step == 2:
            if how == "exception":
                raise KeyboardInterrupt
            p._interrupt = True
        return kwargs

    if how == "exception":
        with pytest.raises(KeyboardInterrupt):
            draw(pipe, seed=3, callback_on_step_end=stop)
    else:
        draw(pipe, seed=3, callback_on_step_end=stop)
        assert fast.record()["sparsity"]["per_step"][3] is None
        assert fast.record()["step_seconds"][3] is None
        assert fast.record()["cache"]["computed_steps"] == [0, 1, 2]
    assert torch.equal(draw(pipe), fresh)
    assert fast.record()["cache"]["computed_steps"] == [0, 1, 2, 3]


def test_listeners_hear_of_each_step_once_and_in_order(shared):
    heard = []
    with svg(shared) as fast:
        fast.runtime.listeners.append(lambda *step: heard.append(step))
        draw(shared)
        per_step = fast.record()["sparsity"]["per_step"]
        assert [(step, steps) for step, steps, _, _ in heard] == [(0, 4), (1, 4), (2, 4), (3, 4)]
        assert [skipped for _, _, skipped, _ in heard] == pytest.approx(per_step)
        assert all(seconds > 0 for *_, seconds in heard)
        draw(shared)
        assert len(heard) == 8


def test_a_transformer_called_by_hand_without_a_context_still_has_steps_and_branches(shared):
    shared.scheduler.set_timesteps(4)
    latents, text = torch.randn(1, 16, 5, 20, 22), torch.randn(1, 16, 32)
    with svg(shared) as fast, torch.no_grad():
        for t in shared.scheduler.timesteps:
            for _ in range(2):
                shared.transformer(latents, t.expand(1), text)
        assert fast.record()["calls"] == {"dense": 12, "sparse": 12, "reused": 0, "expected": 24}
        assert fast.record()["cache"]["computed_steps"] == [0, 1, 2, 3]


def test_branches_are_named_by_a_context_that_gives_no_step_index_as_in_older_diffusers(shared):
    shared.scheduler.set_timesteps(4)
    model, latents, text = shared.transformer, torch.randn(1, 16, 5, 20, 22), torch.randn(1, 16, 32)
    with svg(shared, refresh=9, share_branches=False) as fast, torch.no_grad():
        for t in shared.scheduler.timesteps:
            for branch in ("cond", "uncond"):
                with model.cache_context(branch):
                    model(latents, t.expand(1), text)
        run = fast.runtime.run
        assert run.branches == {"cond", "uncond"} and [layer for layer, _ in run.facts] == [1, 2, 1, 2]
        assert fast.record()["cache"]["computed_steps"] == [0, 1, 2, 3]


@pytest.mark.parametrize("scheduler", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_a_scheduler_put_in_later_is_followed_also_one_that_doubles_its_timesteps(scheduler):
    import diffusers

    pipe = tiny_pipeline()
    fast = svg(pipe, dense_steps=2)
    pipe.scheduler = getattr(diffusers, scheduler)(shift=3.0)
    draw(pipe, steps=4)
    record = fast.record()
    steps = len(pipe.scheduler.timesteps)
    assert steps == (7 if "Heun" in scheduler else 4)
    assert record["cache"]["computed_steps"] == list(range(steps))
    assert [share > 0 for share in record["sparsity"]["per_step"]] == [False] * 2 + [True] * (steps - 2)


@pytest.mark.parametrize("mode", ["accelerate", "run"])
def test_inference_mode_around_one_part_and_not_the_other_is_fine(mode):
    pipe = tiny_pipeline()
    svg(pipe)
    right = draw(pipe)
    pipe = tiny_pipeline()
    with torch.inference_mode(mode == "accelerate"):
        fast = svg(pipe)
    with torch.inference_mode(mode == "run"):
        out = draw(pipe)
    assert torch.equal(out, right)
    assert fast.record()["calls"]["sparse"] == 12
