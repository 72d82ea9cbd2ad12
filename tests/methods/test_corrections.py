"""What makes up for skipped pairs: identities, what it is worth, and what it carries."""

import dataclasses

import pytest
import torch

from dittools import Config, corrections
from dittools.attention import attend
from dittools.call_info import CallInfo, Timing
from dittools.corrections import SparseCall
from dittools.corrections.centroids import Centroids
from dittools.corrections.fit import Fit, mapped
from dittools.corrections.rettention import Rettention
from dittools.corrections.sampled import Sampled
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
ALL = [Rettention(every=3), Centroids(), Centroids(anchored=False), Sampled(), Fit(rows=64)]
IDS = ["rettention", "anchored", "centroids", "sampled", "fit"]
by_correction = pytest.mark.parametrize("correction", ALL, ids=IDS)


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
    return correction.correct(SparseCall(q, k, v, plan, fresh, out, lse, call(), state, 0.7)), out


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


@pytest.mark.parametrize("correction", [Centroids(), Sampled(), Fit(rows=16)], ids=lambda x: x.name)
def test_what_stands_for_blocks_waits_for_nothing(correction):
    q, k, v = alike(GRID)
    for plan in plans(q, k, v).values():
        out, lse = attend(q, k, v, plan, SCALE, return_lse=True)
        with NoSync():
            correction.correct(SparseCall(q, k, v, plan, True, out, lse, call(), {}, 0.7))


def draw(number):
    """A call of a run of its own."""
    return dataclasses.replace(call(), seed=number)


@pytest.mark.parametrize("kind", ["blocks", "raster", "clusters"])
def test_mass_and_output_of_a_sample_are_right_on_average(kind):
    q, k, v = neighbourly(GRID, heads=1)
    plan = blocks_plan(1, ordered=kind == "blocks") if kind != "clusters" else plans(q, k, v)[kind]
    flat = torch.zeros_like(q)  # all weights alike: the softmax is linear in what is drawn
    out, lse = attend(flat, k, v, plan, SCALE, return_lse=True)
    found = torch.stack(
        [
            Sampled().correct(SparseCall(flat, k, v, plan, True, out, lse, draw(number), {}, 0.7)).out
            for number in range(60)
        ]
    )
    want = v.mean(1, keepdim=True).expand_as(out)
    spread = found.std(0) / 60**0.5
    assert ((found.mean(0) - want).abs() < 6 * spread + 1e-3).all()
    assert error(found.mean(0), want) < 0.3 * error(out, want)


def test_a_sample_is_of_its_step_alone_and_the_same_for_branches_and_heads():
    q, k, v = neighbourly(GRID)
    k, v = (x[:, :, :1].expand(-1, -1, 2, -1).contiguous() for x in (k, v))
    q = q[:, :, :1].expand(-1, -1, 2, -1).contiguous()
    plan = blocks_plan(1, 1, ordered=False)
    out, lse = attend(q, k, v, plan, SCALE, return_lse=True)

    def corrected(number, drawn=0):
        here = draw(number)
        torch.rand(drawn, generator=here.generator)  # what a method drew before
        return Sampled().correct(SparseCall(q, k, v, plan, True, out, lse, here, {}, 0.7)).out

    assert torch.equal(corrected(5), corrected(5, drawn=3)) and not torch.equal(corrected(5), corrected(6))
    assert torch.equal(corrected(5)[:, :, 0], corrected(5)[:, :, 1])


@pytest.mark.parametrize("apart", [False, True])
def test_keys_that_were_neither_kept_nor_drawn_have_no_say(apart):
    q, k, v = alike(GRID)
    plan = blocks_plan(1, 1, ordered=False)
    plan.mask.keep[..., 2:] = False
    sample = Sampled().sample(plan, call(), 0.7)
    plain, lse = attend(q, k, v, plan, SCALE, return_lse=True)

    def found():
        if apart:  # in a pass of its own, after the call
            return Sampled().correct(SparseCall(q, k, v, plan, True, plain, lse, call(), {}, 0.7)).out
        out, _ = attend(q, k, v, plan, SCALE, sample=sample)
        return Sampled().correct(SparseCall(q, k, v, plan, True, out, lse, call(), {}, 0.7, sample)).out

    first = found()
    others = torch.ones(GRID.tokens, dtype=torch.bool)
    for row in range(plan.mask.query.count):
        others[sample.seen(row)] = False
    assert others.any() and not others.all()
    others[: 2 * plan.mask.key.size] = False
    for x in (k, v):  # poison
        x[:, others] = torch.nan
    again = found()
    assert torch.equal(first, again) and error(first, plain) > 0.05
    v[:, sample.seen(0)[-1]] = torch.nan
    assert found().isnan().any()


def test_a_plan_that_takes_no_sample_is_refused_one_also_where_nothing_is_asked_again():
    q, k, v = alike(GRID)
    clusters, blocks = (plans(q, k, v)[kind] for kind in ("clusters", "raster"))
    sample = Sampled().sample(blocks, call(), 0.7)
    assert Sampled().sample(clusters, call(), 0.7) is None
    for known in (False, True):
        with pytest.raises(ValueError, match="which this plan has not: leave it out"):
            attend(q, k, v, clusters, SCALE, "portable", sample=sample, known=known)


@pytest.mark.parametrize("kind", ["blocks", "raster"])
def test_a_sample_taken_by_the_call_is_the_one_merged_after_it(kind):
    q, k, v = alike(GRID, batches=2)
    plan = plans(q, k, v)[kind]
    sample = Sampled().sample(plan, call(), 0.7)
    out, lse = attend(q, k, v, plan, SCALE, return_lse=True)
    apart = Sampled().correct(SparseCall(q, k, v, plan, True, out, lse, call(), {}, 0.7))
    within, _ = attend(q, k, v, plan, SCALE, sample=sample)
    torch.testing.assert_close(within, apart.out, atol=1e-5, rtol=1e-4)


def test_layers_draw_their_own_keys_anew_in_each_step_whoever_draws_first():
    plan = plans(*alike(GRID))["blocks"]

    def drawn(layers, steps):
        one = call()
        return {
            (step, layer): Sampled().sample(plan, dataclasses.replace(one, step=step, seed=layer), 0.7).positions
            for step in steps
            for layer in layers
        }

    found, turned = drawn((0, 1), (3, 4)), drawn((1, 0), (3, 4))
    assert len({tuple(positions.flatten().tolist()) for positions in found.values()}) == 4
    assert all(torch.equal(found[at], turned[at]) for at in found)
    late = drawn((1,), (4,))
    assert torch.equal(late[4, 1], found[4, 1])


@pytest.mark.parametrize("kind", ["blocks", "raster", "clusters"])
def test_sampled_pairs_are_counted(kind):
    q, k, v = alike(GRID, batches=2)
    plan = plans(q, k, v)[kind]
    done, _ = run(Sampled(), q, k, v, plan)
    keep, key = plan.mask.keep, plan.mask.key
    sizes = key.sizes() if kind != "clusters" else key.run_sizes
    rows = plan.mask.query.sizes() if kind != "clusters" else plan.mask.query.run_sizes
    if kind == "clusters":
        size = call().block_size
        per = max(1, round(Sampled().keys_of(size, 0.7) / size * key.length / key.count))
        drawn = ((~keep & (sizes > 0)[..., None, :]).sum(-1) * per * rows).sum(-1).double()
    else:
        counted = []
        for step in range(40):
            sample = Sampled().sample(plan, call(step), 0.7)
            blocks = [sample.seen(row) // key.size for row in range(plan.mask.query.count)]
            seen = torch.stack([(~keep)[..., row, at].sum(-1) for row, at in enumerate(blocks)], -1)
            counted.append((seen * rows).sum(-1).double())
        drawn = torch.stack(counted).mean(0)  # of a ragged block not as many in each step
    pairs = GRID.tokens**2
    kept = plan.density().double()
    told, true = kept + (1 - kept) * done.computed, kept + drawn / pairs
    assert float(told.mean()) == pytest.approx(float(true.mean()), rel=1e-6 if kind == "clusters" else 1e-4)


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_budget_is_split_between_blocks_and_sample(sparsity, size, share):
    sampled = Sampled(share=share)
    blocks = 1 - sampled.sparsity_of_plans(sparsity, size)
    drawn = (1 - blocks) * sampled.keys_of(size, sparsity) / size
    assert blocks + drawn == pytest.approx(1 - sparsity) and blocks > 0
    # The next power of two, up or down, but at least one key of a block.
    assert drawn / (1 - sparsity) == pytest.approx(share, rel=0.45) or sampled.keys_of(size, sparsity) in (
        1,
        32,
        size // 4,
    )


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


def test_a_map_is_found_on_rows_and_shrinks_towards_none():
    made = torch.Generator().manual_seed(1)
    out = torch.randn(2, 300, 3, 16, generator=made)
    turn = torch.eye(16) + 0.3 * torch.randn(3, 16, 16, generator=made) / 4
    true = torch.einsum("bshd,hde->bshe", out, turn) + torch.randn(1, 1, 3, 16, generator=made)
    rows = torch.randperm(300, generator=made)[:128]
    exact = true.index_select(1, rows)
    assert error(mapped(out, rows, exact, 1e-4), true) < 1e-3
    none = mapped(out, rows, out.index_select(1, rows), 1.0)
    torch.testing.assert_close(none, out, atol=1e-5, rtol=1e-4)
    # With a ridge without end only the means are moved.
    moved = (true - out).index_select(1, rows).mean(1, keepdim=True)
    torch.testing.assert_close(mapped(out, rows, exact, 1e9), out + moved, atol=1e-4, rtol=1e-3)
    noisy = exact + torch.randn(exact.shape, generator=made)
    few, many = (error(mapped(out, rows, noisy, ridge), true) for ridge in (1e-3, 1.0))
    assert many < few
    assert mapped(out.bfloat16(), rows, exact.bfloat16(), 1.0).dtype == torch.bfloat16
    same = torch.ones(1, 40, 2, 16)  # nothing varies: no map but the shift
    torch.testing.assert_close(mapped(same, torch.arange(9), same[:, :9] * 3, 1.0), same * 3)


@pytest.mark.parametrize("under", ["none", "sampled", "centroids"])
def test_a_fit_goes_on_top_of_another_correction(under):
    q, k, v = neighbourly(GRID)
    plan, want = blocks_plan(ordered=False, density=0.2), dense(q, k, v)
    first, out = run(Fit(on=under).under, q, k, v, plan) if under != "none" else (None, attend(q, k, v, plan, SCALE)[0])
    done, _ = run(Fit(on=under), q, k, v, plan)
    assert error(done.out, want) < error(first.out if first else out, want)
    rows, before = 128 / GRID.tokens, first.computed if first else 0.0
    assert float(done.computed) == pytest.approx(float(rows + (1 - rows) * before))
    keeps = Fit(on="rettention").keeps_plans, Fit(on="sampled").keeps_plans
    assert keeps == (Rettention().keeps_plans, 1)
    assert Fit(on="sampled").sparsity_of_plans(0.8, 64) == Sampled().sparsity_of_plans(0.8, 64)


# In a run


def play(steps=8, fail=None, watch=None, **settings):
    """A run of one layer after another over inputs that drift; gives the runtime and errors by step."""
    config = Config(**{"sparsity": 0.7, "dense_steps": 2, "dense_layers": 0, "block_size": 64, **settings})
    runtime = Runtime(config, [Layer("first", 0)])
    runtime.plan_watchers += [watch] * (watch is not None)
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
@pytest.mark.parametrize("correction", ["rettention", "centroids", "sampled", "fit", "fit:on=sampled"])
def test_in_a_run_each_correction_comes_nearer_to_dense_with_each_method(method, correction):
    _, bare = play(method=method)
    runtime, errors = play(method=method, correction=correction)
    assert sum(errors.values()) < 0.8 * sum(bare.values())
    assert any(note.startswith(correction[:3]) for note in runtime.run.notes)


def test_refreshes_count_as_dense_calls_and_the_others_keep_to_the_budget():
    runtime, errors = play(method="svg2", correction="rettention", correction_options={"every": 3})
    density = [call.density for call in runtime.run.calls]
    assert [x is None for x in density] == [True, True, True, False, False, True, False, False]
    assert errors[2] < 1e-5 and errors[5] < 1e-5 and errors[3] > 1e-3
    sparse = [call for call in runtime.run.calls if call.density is not None]
    assert runtime.run.skipped(sparse) == pytest.approx(0.7, abs=0.02)
    assert runtime.run.plans_reused == 4


@pytest.mark.parametrize("correction", ["centroids", "sampled"])
@pytest.mark.parametrize("method", ["svg2", "adaspa"])
def test_the_budget_is_kept_with_what_is_sampled(method, correction):
    bare, _ = play(method=method)
    shares = []
    runtime, _ = play(method=method, correction=correction, watch=lambda _, plan: shares.append(float(plan.share)))
    wanted = 1 - Sampled().sparsity_of_plans(0.7, 64) if correction == "sampled" else 0.3  # the rest is the sample's
    assert shares == pytest.approx([wanted] * 6, abs=0.03)
    for run_ in (bare.run, runtime.run):
        assert sum(call.density is None for call in run_.calls) == 2
        assert run_.skipped(run_.calls[2:]) == pytest.approx(0.7, abs=0.02)


def test_after_a_bad_result_the_correction_starts_anew():
    options = {"method": "svg2", "correction": "rettention", "correction_options": {"every": 9}}
    runtime, errors = play(fail=4, **options)
    # Step 4 went dense with its state and plan forgotten, so that step 5 is a refresh.
    assert [call.density is None for call in runtime.run.calls] == [True, True, True, False, True, True, False, False]
    assert all(e < 1 for e in errors.values())


def test_auto_brings_a_sample_along_svg_ear_centroids_and_others_nothing():
    assert Config("auto").correction_of(SVG2()) == "sampled"
    assert Config("auto", correction="none").correction_of(SVG2()) == "none"
    assert Config("auto", correction="fit").correction_of(SVG2()) == "fit"
    assert Config("svg_ear").correction_of(SVG2()) == Config("svg2").correction_of(SVG2()) == "none"
    assert Config("auto", correction_options={"share": 0.3}).correction_options == {"share": 0.3}
    with pytest.raises(ValueError, match="unknown option of correction sampled 'shar'"):
        Config("auto", correction_options={"shar": 0.3})
    with pytest.raises(ValueError, match=r"correction is none, and options of one are given \(share\)"):
        Config("auto", correction="none", correction_options={"share": 0.3})
    runtime, errors = play(method="svg_ear")
    assert isinstance(runtime.run.correction, Centroids)
    _, bare = play(method="svg2")
    assert sum(errors.values()) < 0.6 * sum(bare.values())
    assert play(method="svg2", steps=3)[0].run.correction is None


def test_corrections_are_listed_and_checked():
    assert corrections.names() == ["auto", "none", "rettention", "centroids", "sampled", "fit"]
    assert all(line and "\n" not in line for _, line, _ in corrections.describe())
    assert Config(correction="centroids") == Config.from_json(Config(correction="centroids").to_json())
    for settings, says in (
        ({"correction": "centroid"}, "unknown correction 'centroid': did you mean centroids"),
        ({"correction": "rettention", "correction_options": {"evry": 3}}, "did you mean every"),
        ({"correction": "rettention", "correction_options": {"every": 0}}, "every must be a whole number"),
        ({"correction": "rettention", "correction_options": {"ramp": 2}}, "ramp must be a number from 0 to 1"),
        ({"correction": "centroids", "correction_options": {"anchored": 1}}, "anchored must be True or False"),
        ({"correction": "none", "correction_options": {"every": 3}}, "is none, and options of one are given (every)"),
        ({"correction_options": {"every": 3}}, "unknown option of correction sampled 'every'"),
        ({"method": "svg", "correction_options": {"every": 3}}, "is none, and options of one are given (every)"),
        ({"correction_options": [1]}, "correction_options must map"),
        ({"correction": "centroids", "method": "todo"}, "todo takes fewer keys instead: use correction none"),
    ):
        with pytest.raises(ValueError) as raised:
            Config(**settings)
        assert says in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "correction, within", [("rettention", 1e-5), ("centroids", 0.9), ("sampled:by_head=false", 0.7), ("fit", 0.95)]
)
def test_keys_that_a_mask_favours_less_are_weighed_against_all_that_was_restored(correction, within):
    # Half of the text counts less, as padding does in Chroma: a sparse call leaves it to be added.
    grid, steps = TokenGrid(1, 24, 24, 40, "last"), torch.linspace(1000, 100, 4)
    mask = torch.zeros(1, 1, 1, grid.tokens)
    mask[..., -20:] = -0.5
    q, k, v = torch.randn(3, 1, grid.tokens, 2, 16, generator=torch.Generator().manual_seed(0))
    want = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), attn_mask=mask)

    def found(name, seed):
        config = Config(method="clear", sparsity=0.7, correction=name, dense_steps=0, dense_layers=0, seed=seed)
        runtime = Runtime(config, [Layer("transformer.0", 0)])
        layout = Layout(1, 24, 24, 0, None)
        runtime.begin_call(CallInfo(Timing(steps[0], steps), grid, torch.device("cpu"), q.dtype, layout=layout))
        return runtime.attend(0, q, k, v, dense=pytest.fail, mask=mask)

    # A sample is right on average alone.
    outs = [found(correction, seed) for seed in range(16 if "sampled" in correction else 1)]
    wrong = [(out - want.transpose(1, 2)).square().mean().sqrt() for out in (sum(outs) / len(outs), found("none", 0))]
    assert wrong[0] < within * wrong[1]
