"""What makes up for skipped pairs: identities, what it is worth, and what it carries."""

import pytest
import torch

from dittools import Config, corrections
from dittools.attention import attend
from dittools.call_info import CallInfo, Timing
from dittools.corrections import SparseCall
from dittools.corrections.centroids import Centroids
from dittools.corrections.rettention import Rettention
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.residual.dispatch import Blocks, calibrate_at_centroid, residual_attention, summarise
from dittools.kernels.residual.naive import naive_residual_attention
from dittools.methods import AttentionCall
from dittools.methods.base import Plan
from dittools.methods.svg2 import SVG2
from dittools.runtime import Layer, Runtime
from dittools.tokens import Layout, TokenGrid
from tests.methods.test_clusters import NoSync, alike, dense, error

GRID, SCALE = TokenGrid(4, 8, 9), 0.125
ALL = [Rettention(every=3), Centroids(), Centroids(anchored=False)]
by_correction = pytest.mark.parametrize("correction", ALL, ids=["rettention", "anchored", "centroids"])


def neighbourly(grid, batches=1, heads=2, seed=0):
    """q, k, v in which neighbours in the sequence are alike, more or less."""
    made = torch.Generator().manual_seed(seed)
    noise = torch.randn(3 * batches * heads, 64, grid.tokens + 40, generator=made)
    smooth = torch.nn.functional.avg_pool1d(noise, 41, 1) * 6 + 0.7 * noise[..., 20:-20]
    return smooth.view(3, batches, heads, 64, grid.tokens).permute(0, 1, 4, 2, 3).contiguous().unbind()


def call(step=3, state=None):
    drawn = torch.Generator().manual_seed(0)
    return AttentionCall(
        1, 4, "cond", step, 10, GRID, 0.7, SCALE, drawn, 16, branch_state={} if state is None else state
    )


def blocks_plan(heads=2, batches=1, density=0.4, ordered=True, seed=0):
    """Random ragged blocks in a random order, every row with at least one."""
    made = torch.Generator().manual_seed(seed)
    query, key = Partition(GRID.tokens, 20), Partition(GRID.tokens, 26)
    keep = torch.rand(batches, heads, query.count, key.count, generator=made) < density
    keep[..., 0] = True
    order = torch.rand(batches, heads, GRID.tokens, generator=made).argsort(-1).int() if ordered else None
    return Plan(order, BlockMask(keep, query, key))


def plans(q, k, v):
    return {
        "blocks": blocks_plan(q.shape[2], q.shape[0]),
        "raster": blocks_plan(1, 1, ordered=False),
        "clusters": SVG2().plan(q, k, v, call()),
    }


def run(correction, q, k, v, plan, fresh=True, state=None):
    out, lse = attend(q, k, v, plan, SCALE, return_lse=True)
    state = {} if state is None else state
    return correction.correct(SparseCall(q, k, v, plan, fresh, out, lse, call(), state)), out


@pytest.mark.parametrize("kind", ["blocks", "raster", "clusters"])
@by_correction
def test_a_full_mask_leaves_the_output_as_it_is(correction, kind):
    q, k, v = alike(GRID, batches=2)
    plan = plans(q, k, v)[kind]
    plan.mask.keep[:] = True
    done, out = run(correction, q, k, v, plan)
    torch.testing.assert_close(done.out, out, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["blocks", "raster", "clusters"])
@pytest.mark.parametrize("anchored", [False, True])
def test_skipped_blocks_enter_as_one_key_each(kind, anchored):
    q, k, v = alike(GRID, batches=2, heads=1)
    plan = plans(q, k, v)[kind]
    out, lse = attend(q, k, v, plan, SCALE, return_lse=True)
    blocks = Blocks.of(plan, q)
    means = summarise(k, v, blocks)
    if anchored:
        means = calibrate_at_centroid(q, k, v, blocks, means, SCALE)
    found = residual_attention(q, out, lse, blocks, means, SCALE)
    torch.testing.assert_close(found, naive_residual_attention(q, out, lse, blocks, means, SCALE), atol=1e-5, rtol=1e-4)
    done, _ = run(Centroids(anchored=anchored), q, k, v, plan)
    assert torch.equal(done.out, found) and not done.dense


@pytest.mark.parametrize("anchored", [False, True])
def test_blocks_of_equal_keys_and_values_lose_nothing(anchored):
    plan = blocks_plan(ordered=False)
    block = torch.arange(GRID.tokens) // 26
    made = torch.Generator().manual_seed(3)
    q = torch.randn(1, GRID.tokens, 2, 64, generator=made)
    k, v = (torch.randn(1, plan.mask.key.count, 2, 64, generator=made)[:, block] for _ in range(2))
    done, out = run(Centroids(anchored=anchored), q, k, v, plan)
    assert error(out, dense(q, k, v)) > 0.1
    torch.testing.assert_close(done.out, dense(q, k, v), atol=1e-5, rtol=1e-4)


def test_an_anchored_block_of_equal_queries_is_exact_whatever_the_keys():
    plan = blocks_plan(ordered=False)
    block = torch.arange(GRID.tokens) // 20
    made = torch.Generator().manual_seed(4)
    q = torch.randn(1, plan.mask.query.count, 2, 64, generator=made)[:, block] * 2
    k, v = (torch.randn(1, GRID.tokens, 2, 64, generator=made) for _ in range(2))
    anchored, plain = (run(Centroids(anchored=a), q, k, v, plan)[0].out for a in (True, False))
    torch.testing.assert_close(anchored, dense(q, k, v), atol=2e-5, rtol=1e-3)
    assert error(plain, dense(q, k, v)) > 0.05


@pytest.mark.parametrize("kind", ["raster", "clusters"])
def test_means_make_up_for_much_and_anchors_for_more(kind):
    q, k, v = neighbourly(GRID)
    plan = plans(q, k, v)[kind]
    (plain, out), (anchored, _) = (run(Centroids(anchored=a), q, k, v, plan) for a in (False, True))
    lost, means, anchors = (error(x, dense(q, k, v)) for x in (out, plain.out, anchored.out))
    assert means < 0.8 * lost and anchors < means


def test_large_logits_and_empty_rows_stay_finite():
    q, k, v = alike(GRID)
    plan = plans(q, k, v)["clusters"]
    plan.mask.keep[..., 3, :] = False
    for correction in ALL:
        done, _ = run(correction, q * 20, k * 20, v, plan)
        assert done.out.isfinite().all(), correction


def test_low_precision_stays_low_and_near():
    q, k, v = (x.bfloat16() for x in alike(GRID))
    plan = plans(q, k, v)["blocks"]
    for correction in ALL:
        done, _ = run(correction, q, k, v, plan)
        exact, _ = run(correction, q.float(), k.float(), v.float(), plan)
        assert done.out.dtype == torch.bfloat16 and error(done.out.float(), exact.out) < 0.02


def test_centroids_wait_for_nothing():
    q, k, v = alike(GRID)
    for plan in plans(q, k, v).values():
        out, lse = attend(q, k, v, plan, SCALE, return_lse=True)
        with NoSync():
            Centroids().correct(SparseCall(q, k, v, plan, True, out, lse, call(), {}))


@pytest.mark.parametrize("kind", ["blocks", "raster", "clusters"])
def test_a_refresh_gives_dense_attention_and_says_so(kind):
    q, k, v = alike(GRID, batches=2)
    done, _ = run(Rettention(), q, k, v, plans(q, k, v)[kind])
    assert done.dense
    torch.testing.assert_close(done.out, dense(q, k, v), atol=1e-5, rtol=1e-4)


def test_the_residual_is_what_skipped_tokens_contribute_and_the_ratio_what_kept_ones_hold():
    q, k, v = alike(GRID)
    plan, state = blocks_plan(ordered=False), {}
    run(Rettention(), q, k, v, plan, state=state)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE).softmax(-1)
    rows = range(GRID.tokens)
    kept = torch.stack([plan.mask.to_tokens(0, h, rows) for h in range(2)])[None]
    torch.testing.assert_close(state["ratio"], (weights * kept).sum(-1), atol=1e-5, rtol=1e-4)
    missed = torch.einsum("bhqk,bkhd->bqhd", weights * ~kept, v)
    torch.testing.assert_close(state["residual"], missed, atol=1e-5, rtol=1e-4)


def test_while_nothing_changes_every_step_is_dense_attention():
    q, k, v = neighbourly(GRID)
    plan, state = plans(q, k, v)["clusters"], {}
    run(Rettention(), q, k, v, plan, state=state)
    done, out = run(Rettention(), q, k, v, plan, fresh=False, state=state)
    assert not done.dense and error(out, dense(q, k, v)) > 0.05
    torch.testing.assert_close(done.out, dense(q, k, v), atol=1e-5, rtol=1e-4)


def test_the_ratio_ramps_up_to_one():
    q, k, v = alike(GRID)
    plan, state = blocks_plan(), {}
    run(Rettention(ramp=0.3), q, k, v, plan, state=state)
    before = state["ratio"].clone()
    for n in (1, 2, 3, 4):
        done, out = run(Rettention(ramp=0.3), q, k, v, plan, fresh=False, state=state)
        torch.testing.assert_close(state["ratio"], (before + 0.3 * n).clamp_max(1))
    torch.testing.assert_close(done.out, out + state["residual"])


# In a run


def play(steps=8, fail=None, **settings):
    """A run of one layer after another over inputs that drift; gives the runtime and errors by step."""
    config = Config(**{"sparsity": 0.7, "dense_steps": 2, "dense_layers": 0, "block_size": 64, **settings})
    runtime = Runtime(config, [Layer("first", 0)])
    schedule = torch.linspace(1000, 0, steps)
    grid = TokenGrid(6, 8, 9)
    ways = neighbourly(grid), neighbourly(grid, seed=1)
    errors = {}
    for step in range(steps):
        q, k, v = (a * (1 - 0.03 * step) + b * 0.03 * step for a, b in zip(*ways, strict=True))
        timing = Timing(schedule[step], schedule, "cond", step_index=step, steps=steps)
        runtime.begin_call(CallInfo(timing, grid, q.device, q.dtype))
        bad = v.clone()
        if step == fail:
            bad[:] = torch.nan
        out = runtime.attend(0, q, k, bad, dense=lambda q=q, k=k, v=v: dense(q, k, v, 0.125))
        while runtime.end_call():
            out = runtime.attend(0, q, k, v, dense=lambda q=q, k=k, v=v: dense(q, k, v, 0.125))
        errors[step] = error(out, dense(q, k, v, 0.125))
    return runtime, errors


@pytest.mark.parametrize("method", ["svg", "svg2"])
@pytest.mark.parametrize("correction", ["rettention", "centroids"])
def test_in_a_run_each_correction_comes_nearer_to_dense_with_each_method(method, correction):
    _, bare = play(method=method)
    runtime, errors = play(method=method, correction=correction)
    assert sum(errors.values()) < 0.8 * sum(bare.values())
    assert any(note.startswith(correction) for note in runtime.run.notes)


def test_refreshes_count_as_dense_calls_and_the_others_keep_to_the_budget():
    runtime, errors = play(method="svg2", correction="rettention", correction_options={"every": 3})
    density = [call.density for call in runtime.run.calls]
    assert [x is None for x in density] == [True, True, True, False, False, True, False, False]
    assert errors[2] < 1e-5 and errors[5] < 1e-5 and errors[3] > 1e-3
    sparse = [call for call in runtime.run.calls if call.density is not None]
    assert runtime.run.skipped(sparse) == pytest.approx(0.7, abs=0.02)
    assert runtime.run.plans_reused == 4


def test_centroids_change_no_count():
    bare, _ = play(method="svg2")
    runtime, _ = play(method="svg2", correction="centroids")
    for run_ in (bare.run, runtime.run):
        assert sum(call.density is None for call in run_.calls) == 2
        assert run_.skipped(run_.calls[2:]) == pytest.approx(0.7, abs=0.02)


def test_after_a_bad_result_the_correction_starts_anew():
    options = {"method": "svg2", "correction": "rettention", "correction_options": {"every": 9}}
    runtime, errors = play(fail=4, **options)
    # Step 4 went dense with its state and plan forgotten, so that step 5 is a refresh.
    assert [call.density is None for call in runtime.run.calls] == [True, True, True, False, True, True, False, False]
    assert all(e < 1 for e in errors.values())


def test_svg_ear_brings_centroids_along_and_svg2_does_not():
    assert Config("svg_ear").correction_of(SVG2()) == "none"
    runtime, errors = play(method="svg_ear")
    assert isinstance(runtime.run.correction, Centroids)
    _, bare = play(method="svg2")
    assert sum(errors.values()) < 0.6 * sum(bare.values())
    assert play(method="svg2", steps=3)[0].run.correction is None


def test_corrections_are_listed_and_checked():
    assert corrections.names() == ["none", "rettention", "centroids"]
    assert all(line and "\n" not in line for _, line, _ in corrections.describe())
    assert Config(correction="centroids") == Config.from_json(Config(correction="centroids").to_json())
    for settings, says in (
        ({"correction": "centroid"}, "unknown correction 'centroid': did you mean centroids"),
        ({"correction": "rettention", "correction_options": {"evry": 3}}, "did you mean every"),
        ({"correction": "rettention", "correction_options": {"every": 0}}, "every must be a whole number"),
        ({"correction": "rettention", "correction_options": {"ramp": 2}}, "ramp must be a number from 0 to 1"),
        ({"correction": "centroids", "correction_options": {"anchored": 1}}, "anchored must be True or False"),
        ({"correction_options": {"every": 3}}, "correction is none, and options of one are given (every)"),
        ({"correction_options": [1]}, "correction_options must map"),
        ({"correction": "centroids", "method": "todo"}, "todo takes fewer keys instead: use correction none"),
    ):
        with pytest.raises(ValueError) as raised:
            Config(**settings)
        assert says in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("correction, within", [("rettention", 1e-5), ("centroids", 0.9)])
def test_keys_that_a_mask_favours_less_are_weighed_against_all_that_was_restored(correction, within):
    # Half of the text counts less, as padding does in Chroma: a sparse call leaves it to be added.
    grid, steps = TokenGrid(1, 24, 24, 40, "last"), torch.linspace(1000, 100, 4)
    mask = torch.zeros(1, 1, 1, grid.tokens)
    mask[..., -20:] = -0.5
    q, k, v = torch.randn(3, 1, grid.tokens, 2, 16, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)
    wrong = {}
    for name in ("none", correction):
        config = Config(method="random", sparsity=0.7, correction=name, dense_steps=0, dense_layers=0)
        runtime = Runtime(config, [Layer("transformer.0", 0)])
        layout = Layout(1, 24, 24, 0, None)
        runtime.begin_call(CallInfo(Timing(steps[0], steps), grid, torch.device("cpu"), q.dtype, layout=layout))
        out = runtime.attend(0, q, k, v, dense=pytest.fail, mask=mask)
        wrong[name] = (out - want.transpose(1, 2)).square().mean().sqrt()
    assert wrong[correction] < within * wrong["none"]
