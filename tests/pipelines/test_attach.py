"""Entering a pipeline and leaving it: what changes, what does not, and what is left behind."""

import gc

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

import dittools
from dittools.attention_profile import Made, Model, Profile
from dittools.config import Config
from dittools.pipelines import backend
from dittools.pipelines.attach import attach
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, family_of, find_family
from dittools.pipelines.root_hook import RootHook
from dittools.runtime import Runtime
from dittools.tokens import TokenGrid
from tests.tiny import draw, tiny_pipeline

SPARSE = {"method": "svg", "sparsity": 0.7, "dense_steps": 1}


@pytest.fixture
def pipe():
    gc.collect()  # what other tests left behind must not be counted here
    backend._sweep()
    return tiny_pipeline()


def same(a, b):
    return torch.equal(a, b)


def traces(pipe):
    """Everything an acceleration could leave on a pipeline or in diffusers."""
    modules = {
        name: (
            sorted(m.__dict__),
            list(m._forward_hooks),
            list(m._forward_pre_hooks),
            id(m.__dict__.get("processor")),
        )
        for name, m in pipe.transformer.named_modules()
    }
    tables = [
        list(getattr(_AttentionBackendRegistry, t)) for t in ("_backends", "_constraints", "_supported_arg_names")
    ]
    return modules, tables, list(AttentionBackendName.__members__), _AttentionBackendRegistry._active_backend


def test_restore_is_bit_identical_and_leaves_nothing_behind(pipe):
    before = draw(pipe)
    state = traces(pipe)
    fast = dittools.accelerate(pipe, **SPARSE)
    during = draw(pipe)
    fast.restore()
    assert not same(before, during)
    assert traces(pipe) == state
    assert same(draw(pipe), before)
    fast.restore()
    assert traces(pipe) == state


def test_the_context_manager_restores_also_after_an_error(pipe):
    before, state = draw(pipe), None
    state = traces(pipe)
    with pytest.raises(ZeroDivisionError), dittools.accelerate(pipe, **SPARSE):
        raise ZeroDivisionError
    assert traces(pipe) == state and same(draw(pipe), before)


def test_only_self_attention_changes_and_the_global_backend_stays(pipe):
    cross = [block.attn2.processor for block in pipe.transformer.blocks]
    active = _AttentionBackendRegistry._active_backend
    dittools.accelerate(pipe, **SPARSE)
    assert _AttentionBackendRegistry._active_backend is active
    assert [block.attn2.processor for block in pipe.transformer.blocks] == cross
    assert not any("dittools" in name.value for name in AttentionBackendName)


def test_a_processor_that_self_and_cross_attention_share_stays_untouched_for_cross(pipe):
    for block in pipe.transformer.blocks:
        block.attn2.set_processor(block.attn1.processor)
    fast = dittools.accelerate(pipe, **SPARSE)
    draw(pipe)
    calls = fast.record()["calls"]
    assert calls.pop("expected") == sum(calls.values()) == 3 * 4 * 2
    assert all(block.attn2.processor._attention_backend is None for block in pipe.transformer.blocks)


def test_a_pipeline_beside_it_is_untouched_even_while_the_first_one_runs(pipe):
    other = tiny_pipeline(seed=5)
    before = draw(other)
    dittools.accelerate(pipe, **SPARSE)
    seen = []

    def run_other(_, step, timestep, kwargs):
        seen.append(draw(other))
        return kwargs

    out = draw(pipe, callback_on_step_end=run_other)
    assert len(seen) == 4 and all(same(x, before) for x in seen)
    assert same(draw(pipe), out)


def test_two_accelerated_pipelines_do_not_mix_even_when_their_runs_interleave(pipe):
    other = tiny_pipeline(seed=5)
    alone = []
    for p, sparsity in ((pipe, 0.7), (other, 0.4)):
        with dittools.accelerate(p, method="svg", sparsity=sparsity):
            alone.append(draw(p))
    first = dittools.accelerate(pipe, method="svg", sparsity=0.7)
    second = dittools.accelerate(other, method="svg", sparsity=0.4)
    seen = []

    def run_other(_, step, timestep, kwargs):
        seen.append(draw(other))
        return kwargs

    out = draw(pipe, callback_on_step_end=run_other)
    assert same(out, alone[0]) and all(same(x, alone[1]) for x in seen)
    achieved = [fast.record()["sparsity"]["sparse_calls"] for fast in (first, second)]
    assert achieved == pytest.approx([0.7, 0.4], abs=0.02)
    assert len(first.record()["step_seconds"]) == 4


def test_a_second_acceleration_replaces_the_first(pipe):
    before, state = draw(pipe), None
    state = traces(pipe)
    first = dittools.accelerate(pipe, **SPARSE)
    second = dittools.accelerate(pipe, method="svg", sparsity=0.3)
    draw(pipe)
    assert first.record()["calls"]["sparse"] == 0
    assert second.record()["sparsity"]["sparse_calls"] == pytest.approx(0.3, abs=0.02)
    first.restore()
    assert len(_AttentionBackendRegistry._backends) == len(state[1][0]) + 1
    second.restore()
    assert traces(pipe) == state and same(draw(pipe), before)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cache": "magcache:profile=nope.json"},
        {"cache": "taylorseer", "cache_options": {"reuse": "stack"}},
        {"method": "svgg"},
        {"config": {"method": "svgg"}},
        {"config": "svg"},
    ],
    ids=["profile", "stack", "method", "mapping", "text"],
)
def test_a_second_acceleration_that_fails_leaves_the_first_as_it_was(wrong):
    pipe = tiny_pipeline(layers=1)
    fast = dittools.accelerate(pipe, **SPARSE, dense_layers=0)
    before, state, text = draw(pipe), traces(pipe), fast.summary()
    with pytest.raises((ValueError, TypeError)):
        dittools.accelerate(pipe, **wrong)
    assert traces(pipe) == state and fast.summary() == text
    assert same(draw(pipe), before) and fast.record()["calls"]["sparse"] > 0


def test_a_second_acceleration_that_fails_on_the_way_in_leaves_the_first_on(pipe, monkeypatch):
    fast = dittools.accelerate(pipe, **SPARSE)
    before, state = draw(pipe), traces(pipe)
    install, calls = RootHook.install, []

    def fails_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise ZeroDivisionError
        return install(*args)

    monkeypatch.setattr(RootHook, "install", fails_once)
    with pytest.raises(ZeroDivisionError):
        dittools.accelerate(pipe, method="dense")
    assert same(draw(pipe), before) and fast.record()["calls"]["sparse"] > 0
    fast.restore()
    with dittools.accelerate(pipe, **SPARSE):
        assert len(_AttentionBackendRegistry._backends) == len(state[1][0])


@pytest.mark.parametrize("cache", ["none", "easycache"])
def test_blocks_nest_and_the_outer_one_is_back_at_the_end_of_the_inner_one(pipe, cache):
    before = draw(pipe)
    state = traces(pipe)
    with dittools.accelerate(pipe, **SPARSE, cache=cache) as outer:
        sparse, inside = draw(pipe), traces(pipe)[1]
        with dittools.accelerate(pipe, method="dense") as inner:
            assert "took its place" in outer.summary() and "took its place" not in inner.summary()
            assert same(draw(pipe), before)
        assert "took its place" not in outer.summary() + inner.summary()
        assert traces(pipe)[1] == inside and same(draw(pipe), sparse)
        assert outer.record()["calls"]["sparse"] > 0
    assert traces(pipe) == state and same(draw(pipe), before)


def test_the_end_of_a_block_gives_back_what_was_on_before_it(pipe):
    before = draw(pipe)
    state = traces(pipe)
    first = dittools.accelerate(pipe, **SPARSE)
    sparse = draw(pipe)
    with dittools.accelerate(pipe, method="dense"):
        pass
    assert same(draw(pipe), sparse)
    with dittools.accelerate(pipe, method="dense"):
        first.restore()
    assert traces(pipe) == state and same(draw(pipe), before)


def test_restore_gives_back_the_acceleration_of_the_block_around_it_and_no_other(pipe):
    draw(pipe, steps=1)  # diffusers leaves a registry of its own
    state = traces(pipe)
    with dittools.accelerate(pipe, **SPARSE) as block:
        sparse = draw(pipe)
        replaced = dittools.accelerate(pipe, method="svg", sparsity=0.3)
        dittools.accelerate(pipe, method="dense").restore()
        assert "took its place" in replaced.summary() and "took its place" not in block.summary()
        assert same(draw(pipe), sparse)
    assert traces(pipe) == state


def test_what_replaced_an_acceleration_in_its_block_stays_after_the_block(pipe):
    before = draw(pipe)
    state = traces(pipe)
    with dittools.accelerate(pipe, method="dense"):
        later = dittools.accelerate(pipe, **SPARSE)
    assert not same(draw(pipe), before) and later.record()["calls"]["sparse"] > 0
    later.restore()
    assert traces(pipe) == state


def test_each_attachment_says_where_it_stands(pipe):
    def on(*made):
        return [one.state.name.lower() for one in made]

    before, dense = traces(pipe), Config(method="dense")
    first, second = attach(pipe, dense), attach(pipe, dense)
    assert on(first, second) == ["suspended", "attached"]
    with second, attach(pipe, dense) as inner:
        first.detach()  # while another has its place
        with attach(pipe, dense) as innermost:
            second.detach()
            assert on(first, second, inner, innermost) == ["restored", "restored", "suspended", "attached"]
        assert on(inner, innermost) == ["attached", "restored"]
    assert on(first, second, inner) == ["restored"] * 3 and traces(pipe) == before


class Around:
    """Another pipeline with the same transformer."""

    def __init__(self, transformer):
        self.transformer = transformer


def test_an_acceleration_does_not_come_back_where_another_has_taken_part_of_it_meanwhile():
    pipe = tiny_pipeline(experts=2)
    before = draw(pipe)
    state = traces(pipe)
    first, second = Around(pipe.transformer), Around(pipe.transformer_2)
    with dittools.accelerate(pipe, **SPARSE) as both:
        with dittools.accelerate(first, method="dense"):
            other = dittools.accelerate(second, **SPARSE)
        assert "took its place" in both.summary() and "took its place" not in other.summary()
    other.restore()
    assert traces(pipe) == state and same(draw(pipe), before)


def test_replaced_accelerations_do_not_pile_up(pipe):
    def count():
        gc.collect()
        return sum(type(thing) is Runtime for thing in gc.get_objects())

    dittools.accelerate(pipe, **SPARSE)
    dittools.accelerate(pipe, **SPARSE)
    some = count()
    for _ in range(3):
        dittools.accelerate(pipe, **SPARSE)
    assert count() == some


def test_a_bad_profile_is_known_when_it_is_given_and_not_in_the_first_run(pipe, tmp_path):
    other = tmp_path / "other.json"
    model = Model("WanTransformer3DModel", "0" * 16, 3, 2)
    Profile(model, TokenGrid(5, 10, 11), Made("w", 4), {"sta": {}}).save(other)
    state = traces(pipe)
    for settings, says in (
        ({"method": "paro", "profile": "nope.json"}, "no profile at nope.json"),
        ({"method": "paro", "profile": str(other)}, "is for sta, and not for method paro: make one with"),
        ({"method": "sta", "profile": str(other)}, "is of WanTransformer3DModel 0000000000000000"),
        ({"cache": "taylorseer:schedule=nope.json"}, "nope.json cannot be read"),
    ):
        with pytest.raises(ValueError, match=says):
            dittools.accelerate(pipe, **settings)
    assert traces(pipe) == state


def test_a_config_may_be_a_mapping_of_its_settings_and_nothing_else(pipe):
    fast = dittools.accelerate(pipe, config={"method": "svg", "sparsity": 0.7, "options": {"probe_rows": 32}})
    assert fast.config == dittools.Config(method="svg", sparsity=0.7, options={"probe_rows": 32})
    with pytest.raises(ValueError, match="did you mean sparsity"):
        dittools.accelerate(pipe, config={"sparsty": 0.7})
    with pytest.raises(TypeError, match=r"config must be a dittools\.Config, or a mapping of its settings .* got str"):
        dittools.accelerate(pipe, config="svg")


def test_an_acceleration_outlives_its_handle(pipe):
    before = draw(pipe)
    dittools.accelerate(pipe, **SPARSE)
    gc.collect()
    assert not same(draw(pipe), before)


def test_the_entry_of_a_pipeline_that_is_gone_is_swept_up(pipe):
    gc.collect()
    with dittools.accelerate(pipe, **SPARSE):
        count = len(_AttentionBackendRegistry._backends)
    for _ in range(3):
        dittools.accelerate(tiny_pipeline(), **SPARSE)
        gc.collect()
    with dittools.accelerate(pipe, **SPARSE):
        assert len(_AttentionBackendRegistry._backends) == count


def test_a_processor_someone_wrapped_around_ours_works_on_after_restore(pipe):
    before = draw(pipe)
    fast = dittools.accelerate(pipe, **SPARSE)
    attention = pipe.transformer.blocks[1].attn1
    ours, calls = attention.processor, []

    def around(*args, **kwargs):
        calls.append(1)
        return ours(*args, **kwargs)

    attention.processor = around
    fast.restore()
    assert attention.processor is around
    other = dittools.accelerate(tiny_pipeline(seed=5), **SPARSE)
    assert same(draw(pipe), before) and len(calls) == 8
    assert other.record()["steps"] == 0


class AddOne(ModelHook):
    """A hook as caches and offloading install them; it changes the output so that losing it shows."""

    def post_forward(self, module, output):
        return (output[0] + 1,)


@pytest.mark.parametrize("restore_first", ["ours", "theirs"])
@pytest.mark.parametrize("attach_first", ["ours", "theirs"])
def test_diffusers_hooks_before_or_after_ours_keep_working(pipe, attach_first, restore_first):
    registry = HookRegistry.check_if_exists_or_initialize(pipe.transformer)
    before = draw(pipe, steps=2)
    with dittools.accelerate(pipe, **SPARSE):
        sparse = draw(pipe, steps=2)
    registry.register_hook(AddOne(), "add_one")
    hooked = draw(pipe, steps=2)
    with dittools.accelerate(pipe, **SPARSE):
        both = draw(pipe, steps=2)
    registry.remove_hook("add_one")
    assert len({x.mean().item() for x in (before, sparse, hooked, both)}) == 4

    if attach_first == "ours":
        fast = dittools.accelerate(pipe, **SPARSE)
        registry.register_hook(AddOne(), "add_one")
    else:
        registry.register_hook(AddOne(), "add_one")
        fast = dittools.accelerate(pipe, **SPARSE)
    assert same(draw(pipe, steps=2), both)
    if restore_first == "ours":
        fast.restore()
        assert same(draw(pipe, steps=2), hooked)
        registry.remove_hook("add_one")
    else:
        registry.remove_hook("add_one")
        assert same(draw(pipe, steps=2), sparse)
        fast.restore()
    assert same(draw(pipe, steps=2), before)


@pytest.mark.parametrize("order", ["offload first", "offload last"])
def test_offload_hooks_that_replace_forward_work_before_and_after(pipe, order):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_module

    before = draw(pipe, steps=2)
    with dittools.accelerate(pipe, **SPARSE):
        sparse = draw(pipe, steps=2)
    hook = AlignDevicesHook(execution_device="cpu", io_same_device=True)
    if order == "offload first":
        add_hook_to_module(pipe.transformer, hook)
        fast = dittools.accelerate(pipe, **SPARSE)
    else:
        fast = dittools.accelerate(pipe, **SPARSE)
        add_hook_to_module(pipe.transformer, hook)
    assert same(draw(pipe, steps=2), sparse)
    assert fast.record()["calls"]["sparse"] > 0
    fast.restore()
    assert hasattr(pipe.transformer, "_hf_hook")
    assert same(draw(pipe, steps=2), before)
    remove_hook_from_module(pipe.transformer)
    assert same(draw(pipe, steps=2), before)


@pytest.mark.parametrize("order", ["casting first", "casting last"])
def test_layerwise_casting_works_before_and_after(order):
    def cast(p):
        p.transformer.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)

    outputs = []
    for attach_first in (order == "casting last", order == "casting first"):
        p = tiny_pipeline()
        if not attach_first:
            cast(p)
        fast = dittools.accelerate(p, **SPARSE)
        if attach_first:
            cast(p)
        outputs.append(draw(p))
        assert fast.record()["calls"]["sparse"] == 2 * 3 * 2
        fast.restore()
        outputs.append(draw(p))
    assert same(outputs[0], outputs[2]) and same(outputs[1], outputs[3]) and not same(outputs[0], outputs[1])


def test_a_backend_set_while_attached_is_that_of_dense_calls_and_stays(pipe):
    fast = dittools.accelerate(pipe, method="dense")
    pipe.transformer.blocks[0].attn1.set_attention_backend("_native_math")
    draw(pipe)
    fast.restore()
    assert pipe.transformer.blocks[0].attn1.processor._attention_backend == AttentionBackendName._NATIVE_MATH


def test_both_transformers_of_wan_2_2_share_one_run():
    pipe = tiny_pipeline(experts=2)
    before = draw(pipe)
    with dittools.accelerate(pipe, **SPARSE, dense_layers=1) as fast:
        draw(pipe)
        record = fast.record()
    assert len(record["sparsity"]["per_layer"]) == 6
    assert all(seconds > 0 for seconds in record["step_seconds"])
    # Step 0 is dense, whichever transformer ran it; the first layer of each transformer is.
    skipped = record["sparsity"]["per_layer"]
    assert skipped[3] == 0 and min(skipped[4:]) > 0.5
    assert record["calls"].pop("expected") == sum(record["calls"].values()) == 4 * 2 * 3
    assert same(draw(pipe), before)


def test_a_pipeline_of_no_known_family_is_named_with_what_lists_those_that_are(pipe):
    class Other:
        transformer = torch.nn.Linear(1, 1)

    for bad, says in ((Other(), "Other with Linear"), (pipe.vae, "AutoencoderKLWan")):
        with pytest.raises(BadInput) as error:
            dittools.accelerate(bad)
        assert says in str(error.value) and "known family (`dittools models` lists them)" in str(error.value)
        assert "\n" not in str(error.value)


def test_a_failed_attach_changes_nothing(pipe):
    pipe.transformer.blocks[2].attn1.processor = lambda *args, **kwargs: None
    state = traces(pipe)
    with pytest.raises(BadInput, match=r"blocks\.2\.attn1 runs function"):
        dittools.accelerate(pipe, **SPARSE)
    assert traces(pipe) == state


def test_a_config_and_single_settings_exclude_each_other(pipe):
    config = dittools.Config(method="svg", sparsity=0.5)
    assert dittools.accelerate(pipe, config=config).config is config
    with pytest.raises(ValueError, match="got a config and sparsity"):
        dittools.accelerate(pipe, config=config, sparsity=0.4)


def test_families_are_found_by_name_alias_and_pipeline(pipe):
    assert find_family("Wan2.1") is find_family("wan") is family_of(pipe)
    with pytest.raises(BadInput, match="did you mean wan"):
        find_family("wam")
    names = [name for family in FAMILIES for name in (family.name, *family.aliases)]
    assert len(names) == len(set(names))


def test_the_self_attention_pattern_matches_whole_parts_of_a_path():
    wan = find_family("wan")
    assert wan.is_self_attention("blocks.12.attn1")
    for path in ("blocks.12.attn2", "blocks.1.sub.attn1", "vace_blocks.0.attn1", "blocks.0.attn1.to_q"):
        assert not wan.is_self_attention(path)
