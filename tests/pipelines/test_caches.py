"""Step caches on pipelines: exact where they reuse nothing, right where they do, and gone when they are taken off."""

import gc
import itertools
import json
import weakref
from pathlib import Path

import pytest
import torch

import dittools
from dittools import caches, methods, summary
from dittools import sparse as sparse_module
from dittools.caches import Shapes
from dittools.caches.base import OutputCache
from dittools.call_info import CallInfo, Reusable, Timing
from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.pipelines.families import FAMILIES, find_family
from dittools.runtime import Layer, Runtime
from dittools.tokens import TokenGrid
from tests.families_tiny import TINY, transformer
from tests.pipelines.test_families import Holder, grid_of
from tests.tiny import draw, tiny_pipeline

NOTHING = {
    "teacache": {"threshold": 0},
    "first_block": {"threshold": 0},
    "magcache": {"threshold": 0},
    "taylorseer": {"interval": 1},
    "easycache": {"threshold": 0},
    "pab": {"interval": 1},
    "fastercache": {"interval": 1, "branch_interval": 1},
    "sea": {"threshold": 0},
}
"""Settings of each cache with which nothing is reused."""

THIRD = {"interval": 3, "start": 0, "taylor_order": 0, "warmup_steps": 1}
SCHEDULES = [
    ("taylorseer", {}, "CCC-C----C-C"),
    ("taylorseer", THIRD | {"reuse": "delta"}, "C--C--C--C-C"),
    ("taylorseer", THIRD | {"reuse": "stack"}, "C--C--C--C-C"),
    ("easycache", {"threshold": 1e9, "max_consecutive_skips": 3}, "CC---C---C-C"),
    ("first_block", {"threshold": 1e9, "max_consecutive_skips": 2}, "C--C--C--C-C"),
    ("first_block", {"threshold": 1e9, "max_consecutive_skips": 2, "reuse": "stack"}, "C--C--C--C-C"),
    ("sea", {"threshold": 1e9, "max_consecutive_skips": 2}, "C--C--C--C-C"),
    ("sea", {"threshold": 1e-9}, "CCCCCCCCCCCC"),
]
"""Caches that reuse whole calls: options, and which of 12 steps are computed (C) and reused (-)."""
BY_PROFILE = {"teacache", "magcache"}  # whose schedules need a profile, and are tested with one

SMALL = {"frames": 5, "height": 48, "width": 64}


def cached(pipe, cache, method="dense", **options):
    return dittools.accelerate(pipe, method=method, cache=cache, cache_options=options)


@pytest.fixture(scope="module")
def shared():
    """One pipeline for tests that restore it."""
    return tiny_pipeline()


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """A profile of the tiny model: every change costs 1, and magnitudes fall."""
    found = {
        "schema": 1,
        "kind": "cache",
        "model": "tiny",
        "match": {"transformer": "WanTransformer3DModel", "experts": 1, "config": {}},
        "steps": 8,
        "teacache": {
            "signal": "time_embedding",
            "coefficients": [0, 0, 0, 0, 1.0],
            "valid": [0, 10],
            "threshold": 2.5,
            "first": 2,
        },
        "magcache": {"ratios": [1.0] * 4 + [0.9] * 4, "threshold": 0.25, "max_skips": 3, "first": 2},
        "masks": {"8": {"mask": "11010011"}},
    }
    path = tmp_path_factory.mktemp("profile") / "tiny.json"
    path.write_text(json.dumps(found))
    return str(path)


def test_the_tables_above_have_every_cache():
    assert set(NOTHING) == set(caches.CACHES)
    whole = {name for name, kind in caches.CACHES.items() if issubclass(kind, OutputCache)}
    assert {name for name, *_ in SCHEDULES} | BY_PROFILE == whole
    assert all(caches.create(name, options).bind(caches.Model()).never() for name, options in NOTHING.items())


@pytest.mark.parametrize("family", [f.name for f in FAMILIES if f.why_not is None])
def test_a_cache_that_reuses_nothing_is_bit_identical_to_none_in_every_family(family):
    holder, arguments = Holder(family), TINY[family].arguments(grid_of(family), 1)

    def run():
        return [holder.draw(arguments | later) for later in calls]

    calls = [{}, {}]
    if find_family(family).clock != "pipeline":
        clock = find_family(family).timestep
        calls = [{}, {clock: arguments[clock] * 0.5}]
    before = run()
    for name, options in NOTHING.items():
        attachment = attach(holder, Config(method="dense", cache=name, cache_options=options))
        try:
            assert all(torch.equal(*pair) for pair in zip(run(), before, strict=True)), name
            record = summary.record(attachment.runtime)
        finally:
            attachment.detach()
        assert record["cache"]["name"] == name and record["calls"]["dense"] > 0
        assert record["calls"]["reused"] == 0 and record["cache"]["reused_steps"] == []
        assert record["cache"]["bytes_held"] == 0, name
    assert all(torch.equal(*pair) for pair in zip(run(), before, strict=True))


@pytest.mark.parametrize("cache, options, schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("guidance", [1.0, 4.0], ids=["alone", "guided"])
def test_a_cache_saves_the_steps_its_schedule_says(shared, cache, options, schedule, guidance):
    ran = []
    hook = shared.transformer.blocks[2].register_forward_hook(lambda *_: ran.append(1))
    with cached(shared, cache, **options) as fast:
        out = draw(shared, steps=12, guidance_scale=guidance, **SMALL)
    hook.remove()
    record, branches = fast.record(), 1 if guidance == 1 else 2
    drawn = "".join("C" if step in record["cache"]["computed_steps"] else "-" for step in range(12))
    assert drawn == schedule
    assert len(record["cache"]["branches"]) == branches
    assert record["cache"]["reused_steps"] == [s for s in range(12) if schedule[s] == "-"]
    # The last block ran as often as steps were computed, and the record's calls say the same.
    if options.get("reuse") != "stack":
        assert len(ran) == branches * schedule.count("C")
    deciding = 1 if cache == "first_block" else 0  # its first layer ran to decide, in the deciding branch
    assert record["calls"]["reused"] == schedule.count("-") * (branches * 3 - deciding)
    assert record["calls"].pop("expected") == sum(record["calls"].values()) == 12 * branches * 3
    assert out.isfinite().all() and len(record["step_seconds"]) == 12 and None not in record["step_seconds"]


def test_profiles_of_a_model_are_masks_before_sampling(shared, profile):
    for cache, options, schedule in (
        ("teacache", {}, "CC--C--C"),
        ("magcache", {}, "CC---C-C"),
        ("taylorseer", {"schedule": profile, "taylor_order": 0, "warmup_steps": 1}, "CC-C--CC"),
    ):
        options = options or {"profile": profile}
        with cached(shared, cache, **options) as fast:
            draw(shared, steps=8, **SMALL)
        computed = fast.record()["cache"]["computed_steps"]
        assert "".join("C" if s in computed else "-" for s in range(8)) == schedule, cache
        assert fast.runtime.run.reuse.mask == [letter == "C" for letter in schedule]


def test_teacache_reads_the_models_own_time_embedding(shared):
    from dittools.pipelines.signals import time_changes

    seen = []
    hook = shared.transformer.condition_embedder.register_forward_hook(lambda m, a, out: seen.append(out[:2]))
    with torch.no_grad():
        draw(shared, steps=4, guidance_scale=1.0, **SMALL)
    hook.remove()
    timesteps = shared.scheduler.timesteps.tolist()
    for index, signal in enumerate(("embedding", "projection")):
        values = [out[index].float().flatten() for out in seen]
        expected = [0.0] + [float((b - a).abs().mean() / a.abs().mean()) for a, b in itertools.pairwise(values)]
        assert time_changes(shared.transformer, signal, timesteps) == pytest.approx(expected, rel=1e-4)


def block_profile(profile, tmp_path):
    """The same profile with the first block's input as TeaCache's signal; a change is worth itself."""
    found = json.loads(Path(profile).read_text())
    found["teacache"] |= {"signal": "block_input", "coefficients": [0, 0, 0, 1.0, 0], "valid": [0, 100]}
    path = tmp_path / "block.json"
    path.write_text(json.dumps(found))
    return str(path)


def test_teacache_by_the_first_blocks_input_decides_before_any_block_runs(shared, profile, tmp_path, monkeypatch):
    from dittools.pipelines import signals

    path, ran = block_profile(profile, tmp_path), []
    monkeypatch.setattr(signals, "modulated_input", lambda block, args, kwargs: signals.first_tensor(args, kwargs))
    monkeypatch.setattr(signals, "knows_input", lambda block: True)
    hook = shared.transformer.blocks[0].register_forward_hook(lambda *_: ran.append(1))
    with cached(shared, "teacache", profile=path, threshold=1e9, max_consecutive_skips=2) as fast:
        draw(shared, steps=8, **SMALL)
    hook.remove()
    record = fast.record()
    assert record["cache"]["computed_steps"] == [0, 1, 4, 7]
    assert len(ran) == 2 * 4 and record["calls"]["reused"] == 4 * 2 * 3
    assert [value is None for value in record["cache"]["branches"]["cond"]["signals"]] == [True] + [False] * 7
    shapes = Shapes(latents=16 * 2 * 6 * 8, tokens=24, width=128, lanes=2, layers=3, bytes=4)
    assert record["cache"]["bytes_held"] == fast.runtime.run.reuse.cache.bytes_held(shapes)


def test_teacache_by_an_input_that_is_not_known_for_this_model_is_refused_when_put_on(shared, profile, tmp_path):
    with pytest.raises(ValueError, match="teacache cannot read what the first block of WanTransformer3DModel"):
        cached(shared, "teacache", profile=block_profile(profile, tmp_path))


def by_hand(pipe, branches, steps=9, part="transformer"):
    """Outputs of every call, made as a pipeline makes them; latents and text depend on step and branch alone."""
    pipe.scheduler.set_timesteps(steps)
    outputs, model = {}, getattr(pipe, part)
    with torch.no_grad():
        for step, t in enumerate(pipe.scheduler.timesteps):
            for branch in branches:
                seed = torch.Generator().manual_seed(step * 7 + sum(map(ord, branch)))
                x = torch.randn(1, 16, 2, 6, 8, generator=seed)
                text = torch.randn(1, 16, 32, generator=torch.Generator().manual_seed(len(branch)))
                with model.cache_context(branch):
                    outputs[step, branch] = model(x, t.expand(1), text, return_dict=False)[0].clone()
    return outputs


@pytest.mark.parametrize("cache", ["taylorseer", "pab", "easycache", "first_block", "sea"])
def test_what_a_branch_gets_does_not_depend_on_which_others_there_are(shared, cache):
    options = {
        "taylorseer": THIRD | {"reuse": "delta"},
        "pab": {"interval": 3, "low": 0, "high": 2000},
        "easycache": {"threshold": 5.0, "warmup_steps": 2},
        "first_block": {"threshold": 1.0},
        "sea": {"threshold": 5.0},
    }[cache]
    runs = {}
    for branches in (("cond",), ("cond", "uncond"), ("cond", "third", "uncond")):
        with cached(shared, cache, **options) as fast:
            runs[branches] = by_hand(shared, branches)
        assert fast.record()["calls"]["reused"] > 0
    alone = runs["cond",]
    for outputs in runs.values():
        assert all(torch.equal(outputs[key], alone[key]) for key in alone)
    pair, three = runs["cond", "uncond"], runs["cond", "third", "uncond"]
    assert all(torch.equal(three[key], pair[key]) for key in pair)


def test_a_mask_serves_branches_in_any_order(shared):
    with cached(shared, "taylorseer", **THIRD):
        right = by_hand(shared, ("cond", "uncond"))
    with cached(shared, "taylorseer", **THIRD):
        assert all(torch.equal(value, right[key]) for key, value in by_hand(shared, ("uncond", "cond")).items())


def test_both_branches_in_one_batch_are_reused_together(shared):
    shared.scheduler.set_timesteps(7)
    text = torch.randn(2, 16, 32)
    with cached(shared, "taylorseer", **THIRD) as fast, torch.no_grad():
        for t in shared.scheduler.timesteps:
            with shared.transformer.cache_context("cond_uncond"):
                out = shared.transformer(torch.randn(2, 16, 2, 6, 8), t.expand(2), text)
            assert out.sample.shape == (2, 16, 2, 6, 8)
    assert fast.record()["cache"]["branches"]["cond_uncond"]["reused_steps"] == [1, 2, 4, 5]


def test_an_output_keeps_its_form_and_a_form_not_seen_yet_is_computed(shared):
    shared.scheduler.set_timesteps(9)
    text, seen = torch.randn(1, 16, 32), []
    with cached(shared, "taylorseer", **THIRD | {"interval": 9}) as fast, torch.no_grad():
        for step, t in enumerate(shared.scheduler.timesteps):
            with shared.transformer.cache_context("cond"):
                out = shared.transformer(torch.randn(1, 16, 2, 6, 8), t.expand(1), text, return_dict=step % 2 == 0)
            seen.append(type(out).__name__)
    assert seen == ["Transformer2DModelOutput", "tuple"] * 4 + ["Transformer2DModelOutput"]
    assert fast.record()["cache"]["computed_steps"] == [0, 1, 8]


def test_gradients_are_never_cut_by_a_reused_output(shared):
    shared.scheduler.set_timesteps(6)
    text = torch.randn(1, 16, 32)
    with cached(shared, "taylorseer", **THIRD) as fast:
        for t in shared.scheduler.timesteps:
            x = torch.randn(1, 16, 2, 6, 8, requires_grad=True)
            shared.transformer(x, t.expand(1), text).sample.sum().backward()
            assert x.grad is not None
    assert fast.record()["cache"]["reused_steps"] == []


def test_wan_2_2_computes_the_first_step_of_its_second_expert_and_reuses_nothing_across():
    pipe = tiny_pipeline(experts=2)
    with cached(pipe, "taylorseer", interval=100, start=0, taylor_order=0, warmup_steps=1) as fast:
        draw(pipe, steps=10, **SMALL)
    log = fast.runtime.run.reuse.log
    for branch in ("cond", "uncond"):
        mine = [entry for entry in log if entry.branch == branch]
        change = next(i for i, entry in enumerate(mine) if entry.part == 1)
        assert change > 1 and not mine[change].reused and mine[change - 1].reused
        assert all(entry.part == 1 for entry in mine[change:])
    assert fast.record()["cache"]["computed_steps"] == [0, change, 9]


@pytest.mark.parametrize("scheduler", ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_schedulers_that_call_the_model_once_or_twice_a_step(scheduler):
    import diffusers

    pipe = tiny_pipeline()
    pipe.scheduler = getattr(diffusers, scheduler)(shift=3.0)
    with cached(pipe, "taylorseer", **THIRD) as fast:
        draw(pipe, steps=6, **SMALL)
    steps = len(pipe.scheduler.timesteps)
    assert fast.record()["cache"]["computed_steps"] == sorted({*range(0, steps, 3), steps - 1})


def test_conditioning_channels_of_image_to_video_are_left_out():
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    pipe = tiny_pipeline()
    config = {**pipe.transformer.config, "in_channels": 36}
    pipe.transformer = WanTransformer3DModel.from_config(config).eval().requires_grad_(False)
    pipe.scheduler.set_timesteps(4)
    text, out = torch.randn(1, 16, 32), []
    for cache, options in (
        ("easycache", {"threshold": 1e9, "warmup_steps": 2}),
        ("taylorseer", THIRD | {"reuse": "delta"}),
    ):
        with cached(pipe, cache, **options) as fast, torch.no_grad():
            for t in pipe.scheduler.timesteps:
                out.append(pipe.transformer(torch.randn(1, 36, 2, 6, 8), t.expand(1), text).sample)
        assert fast.record()["calls"]["reused"] > 0
    assert all(o.shape == (1, 16, 2, 6, 8) for o in out)


# With sparse attention

SPARSE = {"method": "svg", "sparsity": 0.7}


def test_sparse_attention_and_a_cache_share_one_warm_up_and_each_switch_is_computed(shared):
    with dittools.accelerate(
        shared, **SPARSE, dense_steps=4, dense_last_steps=2, cache="taylorseer", cache_options=THIRD | {"interval": 50}
    ) as fast:
        draw(shared, steps=12)
    record = fast.record()
    assert record["cache"]["computed_steps"] == [0, 1, 2, 3, 4, 10, 11]
    assert [share and share > 0 for share in record["sparsity"]["per_step"][:6]] == [False] * 4 + [True, None]
    text = fast.summary()
    assert "CCCCC-----CC" in text and "budget" in text and "MiB held" in text
    budget = record["cache"]["attention_pairs"]
    assert sum(budget.values()) == pytest.approx(1)
    # 5 of 12 steps reused, all layers; one of the others sparse, two of its three layers, 70 % skipped.
    assert budget["reused"] == pytest.approx(5 / 12)
    assert budget["skipped"] == pytest.approx(1 / 12 * 2 / 3 * 0.7, abs=0.002)


def test_plans_are_made_anew_by_the_true_step_not_by_the_number_of_calls(shared, monkeypatch):
    made = []
    plan = methods.METHODS["svg"].plan

    def counted(self, q, k, v, call):
        made.append((call.branch, call.step))
        return plan(self, q, k, v, call)

    monkeypatch.setattr(methods.METHODS["svg"], "plan", counted)
    settings = {"dense_steps": 1, "dense_layers": 2, "refresh": 4}
    with dittools.accelerate(
        shared, **SPARSE, **settings, cache="taylorseer", cache_options=THIRD | {"cooldown_steps": 0}
    ) as fast:
        draw(shared, steps=12)
    assert fast.record()["cache"]["computed_steps"] == [0, 1, 3, 6, 9]
    assert [step for branch, step in made if branch == "cond"] == [1, 6]


@pytest.mark.parametrize("cache", ["taylorseer", "first_block", "pab"])
def test_a_forward_run_again_for_a_non_finite_layer_is_kept_in_its_second_form(shared, monkeypatch, cache):
    attend, hit = sparse_module.attend, []

    def poisoned(*args, **kwargs):
        out, lse = attend(*args, **kwargs)
        if not hit:
            hit.append(1)
            out = out * float("nan")
        return out, lse

    monkeypatch.setattr(sparse_module, "attend", poisoned)
    options = {"taylorseer": THIRD, "first_block": {"threshold": 1e9}, "pab": {"interval": 3, "low": 0, "high": 2000}}
    with dittools.accelerate(shared, **SPARSE, dense_steps=1, cache=cache, cache_options=options[cache]) as fast:
        assert draw(shared, steps=6).isfinite().all()
    record = fast.record()
    assert sum(f["count"] for f in record["fallbacks"]) > 0 and record["calls"]["reused"] > 0
    assert record["calls"].pop("expected") == sum(record["calls"].values()) == 6 * 2 * 3


# Attention caches


def test_pab_reuses_attention_alone_and_every_branch_its_own(shared):
    with cached(shared, "pab", interval=2, low=0, high=2000) as fast:
        draw(shared, steps=8, **SMALL)
    record = fast.record()
    assert record["cache"]["attention_reused_steps"] == [1, 3, 5]
    assert record["cache"]["computed_steps"] == list(range(8))
    assert record["calls"] == {"dense": 30, "sparse": 0, "reused": 18, "expected": 48}


@pytest.mark.parametrize("adapter", [False, True])
def test_an_adapters_own_attention_does_not_take_the_place_of_a_layers(adapter):
    """As FLUX's IP-Adapter: a second call in the same layer, to keys of its own."""
    grid, timesteps = TokenGrid(1, 4, 4), torch.tensor([800.0, 600.0, 400.0, 200.0])
    config = Config(method="dense", cache="pab", cache_options={"interval": 2, "low": 0, "high": 1001})
    runtime, computed = Runtime(config, [Layer("layer", 0)]), []
    for t in timesteps:
        about = {"device": torch.device("cpu"), "dtype": torch.float32, "reusable": Reusable(torch.zeros(1, 16, 4))}
        runtime.begin_call(CallInfo(Timing(t, timesteps, "cond"), grid, **about))
        q, keys = torch.randn(1, 16, 2, 8), torch.randn(1, 4, 2, 8)
        runtime.attend(0, q, q, q, dense=lambda q=q: computed.append("own") or q)
        if adapter:
            runtime.attend(0, q, keys, keys, dense=lambda q=q: computed.append("adapter") or q)
        runtime.end_call()
        runtime.run.reuse.update(torch.zeros(1, 16, 4), [torch.zeros(1, 16, 4)])
    assert computed.count("own") == 3 and runtime.run.reused_calls == 1  # the last step is computed
    assert computed.count("adapter") == 4 * adapter


def test_fastercache_rebuilds_the_unguided_branch_from_the_guided_one(shared):
    options = {"interval": 1, "branch_interval": 3, "branch_high": 2000, "low_gain": 1.0, "high_gain": 1.0}
    with cached(shared, "fastercache", **options) as fast:
        outputs = by_hand(shared, ("cond", "uncond"))
    lanes = fast.record()["cache"]["branches"]
    assert lanes["cond"]["reused_steps"] == [] and lanes["uncond"]["reused_steps"] == [1, 2, 4, 5, 7]
    difference = outputs[3, "uncond"] - outputs[3, "cond"]
    torch.testing.assert_close(outputs[4, "uncond"], outputs[4, "cond"] + difference, rtol=1e-4, atol=1e-5)


def test_fastercache_computes_the_attention_of_a_branch_that_has_nothing_recent(shared):
    options = {"interval": 2, "high": 2000, "branch_interval": 4, "branch_high": 2000}
    with cached(shared, "fastercache", **options) as fast:
        by_hand(shared, ("cond", "uncond"))
    reuse = fast.runtime.run.reuse
    lanes = fast.record()["cache"]["branches"]
    assert lanes["uncond"]["computed_steps"] == [0, 4, 8]
    reused = {branch: {s for s, _, lane in reuse.attention_reused if lane[1] == branch} for branch in lanes}
    assert reused == {"cond": {1, 3, 5, 7}, "uncond": set()}


def test_fastercache_cannot_rebuild_a_branch_that_comes_first_and_says_so(shared):
    with cached(shared, "fastercache", branch_high=2000) as fast:
        by_hand(shared, ("uncond", "cond"))
    assert fast.record()["cache"]["branches"]["uncond"]["reused_steps"] == []
    assert any("comes first" in note for note in fast.record()["notes"])


# Lifecycle


@pytest.mark.parametrize("cache, options", [("easycache", {"threshold": 0.5}), ("first_block", {"threshold": 0.5})])
def test_baseline_then_a_run_then_an_aborted_one_then_other_sizes_and_steps(cache, options):
    pipe = tiny_pipeline()
    baseline = draw(pipe, steps=12, **SMALL)
    keys = sorted(pipe.transformer.__dict__), [sorted(block.__dict__) for block in pipe.transformer.blocks]
    fast = cached(pipe, cache, **options)
    first = draw(pipe, steps=12, **SMALL)
    record = fast.record()["cache"]
    assert record["reused_steps"] and not torch.equal(first, baseline)

    def stop(_, step, timestep, kwargs):
        if step == 5:
            raise KeyboardInterrupt
        return kwargs

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, seed=3, steps=12, callback_on_step_end=stop, **SMALL)
    assert torch.equal(draw(pipe, steps=12, **SMALL), first)
    other = draw(pipe, steps=11, frames=9, height=64, width=48)
    assert other.isfinite().all() and len(fast.record()["step_seconds"]) == 11
    assert torch.equal(draw(pipe, steps=12, **SMALL), first)
    assert fast.record()["cache"] == record
    fast.restore()
    assert fast.runtime.run.reuse.held_bytes() == 0
    assert (sorted(pipe.transformer.__dict__), [sorted(block.__dict__) for block in pipe.transformer.blocks]) == keys
    assert torch.equal(draw(pipe, steps=12, **SMALL), baseline)


def test_two_pipelines_at_once_do_not_share_anything():
    pipes = [tiny_pipeline(), tiny_pipeline(seed=5)]
    alone = []
    for pipe in pipes:
        with cached(pipe, "easycache", threshold=0.5):
            alone.append(draw(pipe, steps=8, **SMALL))
    handles = [cached(pipe, "easycache", threshold=0.5) for pipe in pipes]
    seen = []

    def run_other(_, step, timestep, kwargs):
        if step in (2, 5):
            seen.append(draw(pipes[1], steps=8, **SMALL))
        return kwargs

    out = draw(pipes[0], steps=8, callback_on_step_end=run_other, **SMALL)
    assert torch.equal(out, alone[0]) and all(torch.equal(x, alone[1]) for x in seen)
    assert all(handle.record()["cache"]["reused_steps"] for handle in handles)


@pytest.mark.parametrize("how", ["error", "interrupt"])
def test_what_an_aborted_run_holds_ends_with_it(how):
    pipe, held = tiny_pipeline(), []
    fast = cached(pipe, "taylorseer", **THIRD)

    def stop(pipe, step, timestep, kwargs):
        if step == 2:
            held.extend(weakref.ref(tensor) for tensor in fast.runtime.run.reuse.tensors())
            if how == "error":
                raise KeyboardInterrupt
            pipe._interrupt = True
        return kwargs

    try:
        draw(pipe, steps=8, callback_on_step_end=stop, **SMALL)
    except KeyboardInterrupt:
        assert how == "error"
    assert held
    gc.collect()
    assert all(reference() is None for reference in held)
    assert any("5 of 8 steps did not run (3 to 7)" in note for note in fast.record()["notes"])
    draw(pipe, steps=8, **SMALL)
    assert fast.record()["cache"]["computed_steps"] == [0, 3, 6, 7]


def test_a_model_without_a_profile_is_refused_when_the_cache_is_put_on(shared):
    with pytest.raises(ValueError, match=r"teacache has no profile for WanTransformer3DModel \(num_layers 3"):
        dittools.accelerate(shared, cache="teacache")
    draw(shared, steps=1, **SMALL)


def test_under_context_parallelism_ranks_do_not_decide_by_their_own_tokens(shared):
    with cached(shared, "first_block", threshold=1e9) as fast:
        shared.transformer._parallel_config = object()
        try:
            by_hand(shared, ("cond",), steps=4)
        finally:
            del shared.transformer._parallel_config
    assert fast.record()["cache"]["reused_steps"] == []
    assert any("context parallelism" in note for note in fast.record()["notes"])


@pytest.mark.parametrize("order", ["offload first", "offload last"])
def test_offloading_put_on_before_or_after_and_taken_off_first_or_last(order):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    pipe = tiny_pipeline()
    with cached(pipe, "taylorseer", **THIRD):
        right = draw(pipe, steps=6, **SMALL)
    hook = AlignDevicesHook(execution_device="cpu", io_same_device=True)
    if order == "offload first":
        add_hook_to_module(pipe.transformer, hook)
    fast = cached(pipe, "taylorseer", **THIRD)
    if order == "offload last":
        add_hook_to_module(pipe.transformer, hook)
    assert torch.equal(draw(pipe, steps=6, **SMALL), right)
    if order == "offload first":
        remove_hook_from_module(pipe.transformer)
        assert torch.equal(draw(pipe, steps=6, **SMALL), right)
    assert fast.record()["cache"]["reused_steps"] == [1, 2, 4]


# Memory


@pytest.mark.parametrize(
    "cache, options",
    [
        ("taylorseer", THIRD | {"taylor_order": 1}),
        ("taylorseer", THIRD | {"reuse": "delta"}),
        ("taylorseer", THIRD | {"reuse": "stack"}),
        ("easycache", {"threshold": 5.0, "warmup_steps": 2}),
        ("sea", {"threshold": 5.0}),
        ("first_block", {"threshold": 1e9}),
        ("pab", {"interval": 2, "low": 0, "high": 2000}),
        ("fastercache", {"high": 2000, "branch_interval": 1}),
        ("fastercache", {"interval": 1, "branch_high": 2000}),
    ],
    ids=str,
)
def test_the_bytes_held_are_those_of_the_formula(shared, cache, options):
    with cached(shared, cache, **options) as fast:
        draw(shared, steps=10, frames=5, height=48, width=64)
    # Latents 16 x 2 x 6 x 8, 2 x 3 x 4 tokens of 128, two branches, three layers, fp32.
    shapes = Shapes(latents=16 * 2 * 6 * 8, tokens=24, width=128, lanes=2, layers=3, bytes=4)
    assert fast.record()["cache"]["bytes_held"] == fast.runtime.run.reuse.cache.bytes_held(shapes)


# On the embedded model


@pytest.fixture(scope="module")
def embedded():
    from dittools.pipelines import embedded, loading

    return loading.load(embedded.weights_path(), device=torch.device("cpu"), dtype=torch.float32, offload="none")


@pytest.mark.parametrize(
    "cache, saved",
    [("teacache", 8), ("magcache", 8), ("taylorseer:interval=2:first=4:start=4", 5), ("easycache:threshold=1e9", 11)],
)
def test_on_the_embedded_model_each_cache_saves_what_its_schedule_says(embedded, cache, saved):
    from dittools.pipelines import stages

    embeds = stages.encode(embedded, "a red circle moves left", "", 4.0, 16)
    shot = stages.Shot(frames=5, height=64, width=64, steps=16, guidance=4.0, seed=0)
    with dittools.accelerate(embedded, method="dense", cache=cache) as fast:
        assert stages.denoise(embedded, embeds, shot).isfinite().all()
    record = fast.record()
    assert len(record["cache"]["reused_steps"]) == saved
    assert record["calls"]["reused"] == saved * 2 * 8  # both branches, all layers


# Calls that change within a run

CHANGING = {
    "taylorseer": THIRD | {"interval": 4, "taylor_order": 1, "reuse": "delta"},
    "easycache": {"threshold": 1e9, "warmup_steps": 2},
    "first_block": {"threshold": 1e9},
    "sea": {"threshold": 1e9},
    "pab": {"interval": 3, "low": 0, "high": 2000},
    "fastercache": {"interval": 2, "high": 2000, "branch_high": 2000},
}


@pytest.mark.parametrize("cache", CHANGING)
def test_a_lane_whose_batch_changes_in_the_middle_of_a_run_is_answered_as_it_asks(shared, cache):
    """As where a callback ends guidance and halves what both branches shared; and with more text than before."""
    shared.scheduler.set_timesteps(12)
    seen, forms = [], [(2, 16)] * 5 + [(1, 16)] * 4 + [(1, 9)] * 3
    with cached(shared, cache, **CHANGING[cache]) as fast, torch.no_grad():
        for t, (batch, length) in zip(shared.scheduler.timesteps, forms, strict=True):
            x, text = torch.randn(batch, 16, 2, 6, 8), torch.randn(batch, length, 32)
            with shared.transformer.cache_context("cond_uncond"):
                seen.append(shared.transformer(x, t.expand(batch), text).sample)
    assert [len(out) for out in seen] == [batch for batch, _ in forms]
    lane = fast.record()["cache"]["branches"]["cond_uncond"]
    assert {0, 5, 9} <= set(lane["computed_steps"])
    assert fast.record()["calls"]["reused"] > 0


def sd3():
    """A tiny `StableDiffusion3Pipeline`, both guidance branches in one batch, without text encoders."""
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

    ends = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(8,) * 4, latent_channels=4, norm_num_groups=2, shift_factor=0.1,
                        use_quant_conv=False, use_post_quant_conv=False, **ends)  # fmt: skip
    empty = dict.fromkeys(f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3"))
    model = transformer("sd3", "SD3Transformer2DModel")
    pipe = StableDiffusion3Pipeline(transformer=model, vae=vae, scheduler=FlowMatchEulerDiscreteScheduler(), **empty)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_guidance_that_a_callback_ends_leaves_one_picture():
    pipe = sd3()
    width, pooled = pipe.transformer.config.joint_attention_dim, pipe.transformer.config.pooled_projection_dim
    embeds = {f"{kind}prompt_embeds": torch.randn(1, 7, width) for kind in ("", "negative_")}
    embeds |= {f"{kind}pooled_prompt_embeds": torch.randn(1, pooled) for kind in ("", "negative_")}

    def end_guidance(pipe, step, t, given):
        if step == 4:
            pipe._guidance_scale = 0.0
            given = {name: value if name == "latents" else value.chunk(2)[-1] for name, value in given.items()}
        return given

    def draw_latents():
        return pipe(
            **embeds, height=64, width=64, num_inference_steps=11, guidance_scale=5.0, output_type="latent",
            generator=torch.Generator().manual_seed(0), callback_on_step_end=end_guidance,
            callback_on_step_end_tensor_inputs=["latents", "prompt_embeds", "pooled_prompt_embeds"],
        ).images  # fmt: skip

    plain = draw_latents()
    for cache in ("taylorseer:interval=3", "taylorseer:interval=3:reuse=delta", "pab:low=0:high=1001"):
        with dittools.accelerate(pipe, method="dense", cache=cache) as fast:
            assert draw_latents().shape == plain.shape
        assert fast.record()["calls"]["reused"] > 0
    with dittools.accelerate(pipe, method="dense", cache="taylorseer:first=1.0"):
        assert torch.equal(draw_latents(), plain)
