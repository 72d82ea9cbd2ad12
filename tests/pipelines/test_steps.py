"""Step and run of every call, whoever calls: pipelines that share a transformer, loops of one's own, odd schedules."""

import gc
import weakref

import diffusers
import pytest
import torch
from PIL import Image

import dittools
from dittools import caches
from tests import pipelines_tiny
from tests.pipelines.test_caches import SMALL
from tests.tiny import draw, tiny_pipeline

EVERY = {"method": "dense", "cache": "taylorseer", "cache_options": {"interval": 3, "start": 0, "order": 0, "first": 1}}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "UniPCMultistepScheduler": FLOW,
    "FlowMatchEulerDiscreteScheduler": {"shift": 3.0},
    "FlowMatchHeunDiscreteScheduler": {"shift": 3.0},
    "DPMSolverMultistepScheduler": FLOW,
    "DPMSolverSinglestepScheduler": FLOW,
    "DEISMultistepScheduler": FLOW,
    "SASolverScheduler": FLOW,
    "FlowMatchLCMScheduler": {"shift": 3.0},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
}


@pytest.fixture(scope="module")
def shared():
    """One pipeline for tests that restore it."""
    return tiny_pipeline()


def seen(fast):
    """Steps of the calls of the guided branch, in order."""
    return [entry.step for entry in fast.runtime.run.reuse.log if entry.branch == "cond"]


def by_loop(pipe, scheduler, dtype=torch.float32, start=0):
    """A loop of one's own, which has no variable that is named as diffusers names it, and rounds timesteps."""
    latents = torch.randn(1, 16, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    text = torch.zeros(1, 4, 32)
    for moment in scheduler.timesteps[start:]:
        for branch in ("cond", "uncond"):
            with torch.no_grad(), pipe.transformer.cache_context(branch):
                pipe.transformer(latents, (moment * 1.0).expand(1).to(dtype), text)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_with_every_scheduler_each_step_is_seen_once_and_in_order(shared, name):
    before = shared.scheduler
    for steps in (1, 3, 8):
        scheduler = shared.scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
        try:
            with dittools.accelerate(shared, **EVERY) as fast:
                draw(shared, steps=steps, **SMALL)
                calls = len(scheduler.timesteps)
                assert seen(fast) == list(range(calls)) and fast.record()["steps"] == calls
                assert not [
                    note
                    for note in fast.record()["notes"]
                    if "step" in note and "each one matters" not in note and "nothing was reused" not in note
                ]
                for dtype in (torch.float32, torch.bfloat16):
                    scheduler.set_timesteps(steps)
                    by_loop(shared, scheduler, dtype)
                    assert seen(fast) == list(range(calls)) and fast.record()["steps"] == calls
        finally:
            shared.scheduler = before


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("own", [False, True], ids=["one scheduler", "its own scheduler"])
def test_a_second_pipeline_on_the_transformer_runs_as_the_first(own, dropped):
    pipe = tiny_pipeline()
    settings = {"method": "svg", "sparsity": 0.7, "dense_steps": 2, "dense_layers": 0}
    with dittools.accelerate(pipe, **settings) as fast:
        right, told = draw(pipe, steps=5), fast.record()
    fast = dittools.accelerate(pipe, **settings)
    parts = pipe.components
    if own:
        parts["scheduler"] = type(pipe.scheduler).from_config(pipe.scheduler.config)
        draw(pipe, steps=3)
    other = type(pipe)(**parts)
    other.set_progress_bar_config(disable=True)
    if dropped:
        del pipe, parts
        gc.collect()
    assert torch.equal(draw(other, steps=5), right)
    record = fast.record()
    same = ("calls", "steps", "sparsity", "notes")
    assert [record[key] for key in same] == [told[key] for key in same]


def test_two_pipelines_on_one_transformer_run_within_one_another(shared):
    other = type(shared)(
        **{**shared.components, "scheduler": type(shared.scheduler).from_config(shared.scheduler.config)}
    )
    other.set_progress_bar_config(disable=True)
    inner = []

    def draw_within(pipe, step, timestep, kwargs):
        if step == 2:
            inner.append((draw(other, steps=4, seed=1, **SMALL), seen(fast)))
        return kwargs

    with dittools.accelerate(shared, **EVERY) as fast:
        alone = draw(shared, steps=8, **SMALL), draw(other, steps=4, seed=1, **SMALL)
        mixed = draw(shared, steps=8, callback_on_step_end=draw_within, **SMALL)
        assert torch.equal(mixed, alone[0]) and torch.equal(inner[0][0], alone[1])
        assert inner[0][1] == [0, 1, 2, 3] and seen(fast) == list(range(8))
        assert fast.runtime.run.reuse.held_bytes() == 0 and fast.runtime._runs._aside is None


def test_loops_of_ones_own_that_take_turns_keep_their_runs(shared):
    schedules = [diffusers.FlowMatchEulerDiscreteScheduler(shift=shift) for shift in (1.0, 5.0)]
    for scheduler in schedules:
        scheduler.set_timesteps(6)
    latents, text = torch.randn(1, 16, 2, 6, 8), torch.zeros(1, 4, 32)
    with dittools.accelerate(shared, **EVERY) as fast, torch.no_grad():
        for both in zip(*(scheduler.timesteps for scheduler in schedules), strict=True):
            for t in both:
                shared.transformer(latents, t.expand(1), text)
        assert [entry.step for entry in fast.runtime.run.reuse.log] == list(range(6))
        assert [entry.reused for entry in fast.runtime.run.reuse.log] == [False, True, True, False, True, False]


def test_one_step_of_a_schedule_that_is_used_again_is_a_run_each_time(shared):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(1)

    def once():
        for t in scheduler.timesteps:
            for branch in ("cond", "uncond"):
                with torch.no_grad(), shared.transformer.cache_context(branch):
                    shared.transformer(torch.zeros(1, 16, 2, 6, 8), t.expand(1), torch.zeros(1, 4, 32))

    with dittools.accelerate(shared, method="dense") as fast:
        for _ in range(2):
            once()
            layers = len(fast.runtime.layers)
            assert len(fast.runtime.run.calls) == 2 * layers and fast.runtime.run.branches == {"cond", "uncond"}


def test_a_run_of_another_size_after_an_aborted_one_starts_anew(shared):
    def stop(_, step, timestep, kwargs):
        if step == 2:
            raise RuntimeError("enough")
        return kwargs

    alone = draw(shared, steps=4)
    with dittools.accelerate(shared, method="dense", cache="taylorseer:interval=1") as fast:
        with pytest.raises(RuntimeError, match="enough"):
            draw(shared, steps=6, callback_on_step_end=stop, **SMALL)
        assert torch.equal(draw(shared, steps=4), alone)
        assert seen(fast) == [0, 1, 2, 3] and fast.record()["steps"] == 4


@pytest.mark.parametrize("strength, runs", [(1.0, 10), (0.6, 6), (0.3, 3), (0.1, 1)])
def test_warm_up_counts_the_steps_that_run(image_to_image, strength, runs):
    pipe, image = image_to_image
    settings = {"method": "draft", "sparsity": 0.6, "block_size": 64, "dense_steps": 0.2, "dense_layers": 0}
    settings |= {"cache": "taylorseer", "cache_options": {"interval": 4, "start": 0, "order": 0, "first": 0.4}}
    more = {"height": 256, "width": 272, "num_inference_steps": 10, "output_type": "latent"}
    with dittools.accelerate(pipe, **settings) as fast:
        pipe(prompt="a red circle", image=image, strength=strength, **more)
        record = fast.record()
    check_late(record, 10, runs)
    assert record["calls"].pop("expected") == sum(record["calls"].values()) == 2 * runs


def test_warm_up_counts_the_steps_that_run_where_the_model_is_called_twice_a_step(shared):
    parts = {**shared.components, "scheduler": diffusers.FlowMatchHeunDiscreteScheduler()}
    del parts["transformer_2"]
    pipe = diffusers.WanVideoToVideoPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    settings = {"method": "svg", "sparsity": 0.6, "dense_steps": 0.2, "dense_layers": 0}
    settings |= {"cache": "taylorseer", "cache_options": {"interval": 4, "start": 0, "order": 0, "first": 0.4}}
    with dittools.accelerate(shared, **settings) as fast:
        video = [Image.new("RGB", (176, 160), "red")] * 17
        given = {"prompt": "a red circle", "negative_prompt": "grey", "height": 160, "width": 176, "strength": 0.6}
        pipe(video, **given, num_inference_steps=10, max_sequence_length=16, output_type="latent")
        check_late(fast.record(), 19, 11)
        assert [entry.step for entry in fast.runtime.run.reuse.log] == [step for step in range(8, 19) for _ in range(2)]


def check_late(record, steps, runs):
    """Dense and computed steps are the first of those that ran."""
    first = steps - runs
    ran = [step for step, seconds in enumerate(record["step_seconds"]) if seconds is not None]
    assert record["steps"] == steps and ran == list(range(first, steps))
    dense, computed = (max(1, int(share * runs + 0.5)) for share in (0.2, 0.4))
    shares = record["sparsity"]["per_step"]
    assert [bool(shares[step]) for step in ran[: dense + 1]] == [False] * dense + [True] * (runs > dense)
    assert record["cache"]["computed_steps"][:computed] == ran[:computed]
    assert runs < 4 or record["cache"]["reused_steps"]


@pytest.fixture(scope="module")
def image_to_image():
    pipe = diffusers.FluxImg2ImgPipeline.from_pipe(pipelines_tiny.pipeline("flux"))
    pipe.set_progress_bar_config(disable=True)
    return pipe, Image.new("RGB", (272, 256), "red")


@pytest.fixture(scope="module")
def forcing():
    """A SkyReels-V2 pipeline in which every frame has a timestep of its own."""
    base = tiny_pipeline()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = diffusers.SkyReelsV2Transformer3DModel(
            patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=64, in_channels=16, out_channels=16,
            text_dim=32, freq_dim=32, ffn_dim=64, num_layers=1, rope_max_seq_len=256,
        )  # fmt: skip
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(
        base.tokenizer, base.text_encoder, model.eval().requires_grad_(False), base.vae, base.scheduler
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("more, iterations", [({}, 6), ({"ar_step": 2, "causal_block_size": 1}, 14)])
def test_frames_with_timesteps_of_their_own_go_from_step_to_step(forcing, more, iterations):
    given = {"prompt": "a red circle", "negative_prompt": "grey", "height": 160, "width": 176, "num_frames": 17}
    given |= {"base_num_frames": 17, "num_inference_steps": 6, "max_sequence_length": 16, "output_type": "latent"}
    settings = {"method": "svg", "sparsity": 0.7, "dense_steps": 0.2, "dense_layers": 0}
    with dittools.accelerate(forcing, **settings, cache="taylorseer:interval=2:order=0:first=1") as fast:
        forcing(**given, **more)
        record, held = fast.record(), fast.runtime.run.reuse.held_bytes()
    assert record["steps"] == iterations and held == 0
    assert seen(fast) == list(range(iterations))
    dense = max(1, int(0.2 * iterations + 0.5))
    shares = record["sparsity"]["per_step"]
    assert not any(shares[:dense]) and shares[dense] > 0
    assert record["calls"].pop("expected") == sum(record["calls"].values()) == iterations * 2


def test_without_a_schedule_shares_of_a_run_are_dense_and_said_and_counts_hold(shared):
    latents, text = torch.randn(1, 16, 5, 20, 22), torch.zeros(1, 4, 32)
    pipe = type("Pipe", (), {"transformer": shared.transformer})()
    for dense_steps, sparse in ((0.2, 0), (1, 2), (0, 3)):
        settings = {"method": "svg", "sparsity": 0.7, "dense_steps": dense_steps, "dense_layers": 0}
        with dittools.accelerate(pipe, **settings, cache="easycache") as fast, torch.no_grad():
            for value in (900.0, 600.0, 300.0):
                shared.transformer(latents, torch.tensor([value]), text)
        record = fast.record()
        assert (record["steps"], record["calls"]["sparse"], record["calls"]["reused"]) == (3, sparse * 3, 0)
        assert record["calls"]["expected"] == 9 and fast.runtime.run.reuse.held_bytes() == 0
        notes = "\n".join(record["notes"])
        assert "easycache: no schedule is known, so every call is computed" in notes
        assert ("give dense_steps as a number of steps" in notes) == (dense_steps == 0.2)


@pytest.mark.parametrize("steps, dense_steps, last", [(1, 0.2, 0), (3, 3, 0), (4, 0.5, 2)])
def test_a_run_that_is_dense_in_every_step_says_so(shared, steps, dense_steps, last):
    settings = {"method": "svg", "sparsity": 0.5, "dense_steps": dense_steps, "dense_last_steps": last}
    with dittools.accelerate(shared, **settings) as fast:
        draw(shared, steps=steps, **SMALL | {"frames": 17, "height": 160, "width": 176})
        assert f"takes all {steps} of this run" in fast.summary() and fast.record()["calls"]["sparse"] == 0


def test_calls_that_never_come_are_named(shared):
    with dittools.accelerate(shared, method="dense") as fast:
        gone = shared.transformer.blocks[1]
        gone.forward, theirs = (lambda hidden, *_, **__: hidden), gone.forward
        try:
            draw(shared, steps=4, **SMALL)
        finally:
            gone.forward = theirs
        calls = fast.record()["calls"]
        assert calls == {"dense": 16, "sparse": 0, "reused": 0, "expected": 24}
        assert "8 attention calls never came, of transformer.blocks.1.attn1" in fast.summary()


def test_a_forward_that_fails_is_named_and_holds_nothing(shared):
    entered = []

    def fail(_, args):
        entered.append(weakref.ref(args[0]))  # what a cache of the whole stack compares with
        raise RuntimeError("out of memory")

    stack = EVERY | {"cache_options": EVERY["cache_options"] | {"reuse": "stack"}}
    with dittools.accelerate(shared, **stack) as fast:
        late = shared.transformer.blocks[0].register_forward_pre_hook(
            lambda *given: fail(*given) if fast.runtime.latest.step == 3 else None
        )
        with pytest.raises(RuntimeError, match="out of memory"):
            draw(shared, steps=8, **SMALL)
        late.remove()
        gc.collect()
        assert entered and entered[0]() is None
        assert fast.runtime.run.reuse.held_bytes() == 0
        assert "1 forwards of step 3 ended in an error" in fast.summary()
        assert "steps did not run (4 to 7)" in fast.summary()


@pytest.mark.parametrize("cache", ["pab:interval=2:low=0:high=1000", "taylorseer:interval=2:order=0", "fastercache"])
@pytest.mark.parametrize("ends", [None, 4, 8])
def test_nothing_is_held_after_the_last_step_whichever_branches_there_were(shared, cache, ends):
    def end_guidance(pipe, step, timestep, kwargs):
        if step == ends:
            pipe._guidance_scale = 1.0
        return kwargs

    with dittools.accelerate(shared, method="dense", cache=cache) as fast:
        draw(shared, steps=10, callback_on_step_end=end_guidance, **SMALL)
        assert fast.runtime.run.reuse.tensors() == [] and not fast.runtime.run.plans


def test_where_the_second_expert_takes_over_is_read_from_the_pipeline_that_runs(monkeypatch):
    begins, kept = [], caches.base.Cache.kept
    monkeypatch.setattr(caches.base.Cache, "kept", lambda *given: begins.append(given[2]) or kept(*given))
    pipe = tiny_pipeline(experts=2)
    with dittools.accelerate(pipe, **EVERY) as fast:
        other = type(pipe)(**pipe.components, boundary_ratio=0.6)
        other.set_progress_bar_config(disable=True)
        del pipe
        gc.collect()
        draw(other, steps=8, **SMALL)
        switch = next(i for i, t in enumerate(other.scheduler.timesteps) if t < 600)
        assert begins == [(0, switch)]
        assert [entry.part for entry in fast.runtime.run.reuse.log] == [
            int(step >= switch) for step in range(8) for _ in "ab"
        ]
