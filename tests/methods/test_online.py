"""What every online block method promises, and the yardsticks beside them."""

import dataclasses
from contextlib import nullcontext

import pytest
import torch

from dittools import methods
from dittools.attention import attend
from dittools.kinds import kept_by_kind
from dittools.scoped_cache import ScopedCache
from dittools.selection.measured import sums_to_one
from dittools.tokens import Part, TokenGrid
from tests.methods.scenes import DIM, GRIDS, call, dense, kept_mass, kept_tokens, scene, shares
from tests.methods.watch import Memory, NoSync

ONLINE = ["adaspa", "draft", "jenga", "nabla", "sparge", "sparsed", "vmoba", "xattention"]
YARDSTICKS = ["oracle", "random"]
EVERY = ONLINE + YARDSTICKS
every = pytest.mark.parametrize("name", EVERY)
online = pytest.mark.parametrize("name", ONLINE)


def plan_of(name, q, k, v, asked, **options):
    return methods.create(name, options).plan(q, k, v, asked)


@pytest.mark.parametrize("grid", ["ragged", "text last"])
@every
def test_a_full_budget_is_dense(name, grid):
    q, k, v = scene(GRIDS[grid], batches=2)
    plan = plan_of(name, q, k, v, call(GRIDS[grid], 0.0))
    assert plan.mask.keep.all()
    out, _ = attend(q, k, v, plan, DIM**-0.5)
    torch.testing.assert_close(out, dense(q, k, v), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name, options",
    [
        ("jenga", {"top_p": 1.0}),
        ("nabla", {"top_p": 1}),
        ("sparge", {"tau": 1.0}),
        ("vmoba", {"tau": 1.0}),
        ("xattention", {"tau": 1.0}),
    ],
    ids=str,
)
def test_a_threshold_of_one_is_dense_whatever_the_sparsity(name, options):
    grid = GRIDS["ragged"]
    assert plan_of(name, *scene(grid), call(grid, 0.9), **options).mask.keep.all()


@pytest.mark.parametrize("grid", GRIDS)
@every
def test_every_plan_meets_the_budget_keeps_text_and_leaves_no_row_empty(name, grid):
    q, k, v = scene(GRIDS[grid], batches=2)
    for sparsity in (0.5, 0.7, 0.8, 0.9):
        plan = plan_of(name, q, k, v, call(GRIDS[grid], sparsity))
        # Whatever shares a budget, the call as a whole is what the record counts.
        assert shares(plan, GRIDS[grid]).mean().item() == pytest.approx(1 - sparsity, abs=0.02), sparsity
        assert plan.mask.keep.any(-1).all()
        assert plan.notes == () or "near blocks" in plan.notes[0]
        is_text = GRIDS[grid].is_text()
        for b, h in ((0, 0), (-1, -1)):
            kept = kept_tokens(plan, b, h)
            assert kept[is_text].all() and kept[:, is_text].all()
    out, _ = attend(q, k, v, plan, DIM**-0.5)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    "name, scope",
    # Gates may be negative, and adaptive budgets weigh mass.
    [(n, s) for n in EVERY if n != "random" for s in ("row", "head", "layer", "adaptive")[: 3 if n == "vmoba" else 4]],
)
def test_every_scope_meets_the_budget_of_its_own(name, scope):
    q, k, v = scene(GRIDS["video"], batches=2)
    density = plan_of(name, q, k, v, call(GRIDS["video"], 0.75), scope=scope).mask.density()
    of = {"layer": density.mean(1), "adaptive": density.mean(1)}.get(scope, density)
    assert (of - 0.25).abs().max() < 0.02


@every
def test_the_same_call_gives_the_same_plan_and_a_batch_what_each_gets_alone(name):
    grid = GRIDS["text first"]
    q, k, v = scene(grid, batches=2)
    first, again = (plan_of(name, q, k, v, call(grid)) for _ in range(2))
    assert torch.equal(first.mask.keep, again.mask.keep)
    both = first.mask.keep.expand(2, -1, -1, -1)
    for b in range(2):
        alone = plan_of(name, *(x[b : b + 1] for x in (q, k, v)), call(grid))
        assert (alone.mask.keep[0] != both[b]).float().mean() < 1e-3
    if name != "random":
        assert (both[0] != both[1]).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@every
def test_half_precision_chooses_nearly_the_same_blocks(name, dtype):
    grid = GRIDS["video"]
    q, k, v = scene(grid)
    full = plan_of(name, q, k, v, call(grid))
    half = plan_of(name, *(x.to(dtype) for x in (q, k, v)), call(grid))
    assert half.mask.density().mean().item() == pytest.approx(0.2, abs=0.02)
    assert (kept_mass(half, q, k) - kept_mass(full, q, k)).abs().max() < 0.06
    assert (half.mask.keep != full.mask.keep).float().mean() < 0.1


@every
def test_heads_that_differ_get_masks_that_differ(name):
    grid = GRIDS["video"]
    keep = plan_of(name, *scene(grid), call(grid)).mask.keep[0]
    assert all((keep[a] != keep[b]).any() for a in range(4) for b in range(a))


@every
def test_a_plan_kept_for_later_is_made_again_as_it_was(name):
    grid = GRIDS["ragged"]
    plan = plan_of(name, *scene(grid), call(grid))
    again = plan.pack()()
    assert torch.equal(plan.mask.keep, again.mask.keep) and again.notes == plan.notes
    assert again.order is plan.order


@pytest.mark.parametrize("sparsity", [0.6, 0.8])
@pytest.mark.parametrize("grid", ["video", "text last"])
def test_every_method_keeps_more_mass_than_chance_and_the_oracle_most_of_all(grid, sparsity):
    grid = GRIDS[grid]
    q, k, v = scene(grid)
    mass = {}
    for name in ONLINE:
        method = methods.create(name, {})
        plan = method.plan(q, k, v, call(grid, sparsity))
        mass[name] = kept_mass(plan, q, k).mean()
        order = getattr(method, "order", "patches" if name == "nabla" else "raster")
        order = "columns" if name == "vmoba" else order
        chance = plan_of("random", q, k, v, call(grid, sparsity), order=order)
        best = plan_of("oracle", q, k, v, call(grid, sparsity), order=order, scope="layer")
        assert mass[name] > kept_mass(chance, q, k).mean() + 0.1, name
        assert mass[name] < kept_mass(best, q, k).mean() + 0.005, name


@pytest.mark.parametrize("scope", ["row", "head"])
def test_the_oracle_keeps_most_in_every_lane_of_its_scope(scope):
    grid = GRIDS["video"]
    q, k, v = scene(grid)
    best = kept_mass(plan_of("oracle", q, k, v, call(grid), scope=scope), q, k)
    for name in ("xattention", "sparge", "sparsed"):
        other = kept_mass(plan_of(name, q, k, v, call(grid), scope=scope), q, k)
        assert (other <= best + 0.005).all(), name


@pytest.mark.parametrize("grown", [1.0, 1.02, 9.0, 1000.0, -20.0])
def test_a_later_search_of_adaspa_finds_what_a_fresh_one_would(grown):
    grid = GRIDS["text last"]
    q, k, v = scene(grid)
    kept = {"run_cache": ScopedCache(), "state": {}}
    adaspa = methods.create("adaspa", {})
    first = adaspa.plan(q, k, v, call(grid, step=2, **kept))
    before = kept["state"]["lse"]
    again = adaspa.plan(q * grown, k, v, call(grid, step=6, **kept))
    fresh = methods.create("adaspa", {"reuse_lse": False}).plan(q * grown, k, v, call(grid, step=6))
    assert (again.mask.keep == fresh.mask.keep).float().mean() > (0.99 if abs(grown) > 2 else 0.95)
    # A cached log-sum-exp stays while it fits: that is what makes later searches cost half.
    assert (kept["state"]["lse"] is before) == (grown < 2 and grown > 0)
    if grown == 1:
        assert torch.equal(again.mask.keep, first.mask.keep)


def test_masses_fit_while_no_row_of_blocks_is_far_from_one():
    mass = torch.full((1, 2, 3, 4), 0.25)
    assert sums_to_one(mass) and sums_to_one(mass * 300) and sums_to_one(mass / 300)
    for wrong in (1001.0, 0.0009, torch.nan, torch.inf, 0.0):
        off = mass.clone()
        off[0, 1, 2] *= wrong
        assert not sums_to_one(off), wrong


@every
def test_no_plan_waits_for_the_device(name):
    grid = dataclasses.replace(GRIDS["text last"], parts=(Part.of("history", 2, 6, 8), Part.of("reference", 1, 9, 9)))
    q, k, v = scene(grid)
    kept = {"run_cache": ScopedCache(), "state": {}}
    method = methods.create(name, {})
    method.plan(q, k, v, call(grid, step=3, **kept))
    for step in (4, 6, 7):  # adaspa searches again at 6, and asks whether what it kept still fits
        with nullcontext() if name == "adaspa" and step == 6 else NoSync():
            plan = method.plan(q, k, v, call(grid, step=step, **kept))
            plan.mask.density()
            plan.mask.kv_blocks()
            kept_by_kind(plan, grid)


@pytest.mark.parametrize(
    "name, options",
    [
        ("jenga", {"top_p": 0.5}),
        ("nabla", {"top_p": 0.5}),
        ("sparge", {"tau": 0.9}),
        ("vmoba", {"tau": 0.25}),
        ("xattention", {"tau": 0.8}),
    ],
    ids=str,
)
def test_a_threshold_in_place_of_sparsity_waits_for_nothing_and_more_of_it_keeps_more(name, options):
    grid = GRIDS["text last"]
    q, k, v = scene(grid)
    kept = {"run_cache": ScopedCache()}
    knob, value = next(iter(options.items()))
    methods.create(name, options).plan(q, k, v, call(grid, 0.9, **kept))
    with NoSync():
        plan = methods.create(name, options).plan(q, k, v, call(grid, 0.9, **kept))
    less = plan.mask.keep
    assert plan.notes[0].startswith(f"{knob} {value}") and "sparsity" in plan.notes[0]
    more = methods.create(name, {knob: (1 + value) / 2}).plan(q, k, v, call(grid, 0.9, **kept)).mask.keep
    assert (more | ~less).all() and more.sum() > less.sum()
    if name != "jenga":
        other = methods.create(name, options).plan(q, k, v, call(grid, 0.3)).mask.keep
        assert torch.equal(less, other)


def test_the_guard_against_waiting_sees_what_waits():
    x = torch.rand(4)
    for waits in (lambda: x.sum().item(), lambda: x[x > 0.5], lambda: (x > 0.5).nonzero(), lambda: bool(x.any())):
        with pytest.raises(AssertionError, match="waits"), NoSync():
            waits()


@pytest.mark.parametrize("name", ["draft", "jenga", "nabla", "sparge", "vmoba", "xattention", "random"])
def test_at_75600_tokens_and_40_heads_a_plan_holds_less_than_a_copy_of_q_k_and_v(name):
    grid = TokenGrid(21, 45, 80)
    # Meta tensors have sizes and no values: whatever would read one fails.
    q, k, v = (torch.empty(1, grid.tokens, 40, 128, dtype=torch.bfloat16, device="meta") for _ in range(3))
    kept = {"run_cache": ScopedCache(), "state": {}, "block": 128}
    methods.create(name, {}).plan(q, k, v, call(grid, **kept))
    with Memory() as memory, NoSync():
        plan = methods.create(name, {}).plan(q, k, v, call(grid, **kept))
    assert plan.mask.keep.shape == (1, 40, 591, 591)
    assert memory.peak < 800 << 20  # q alone is 738 MiB; 40 x S x S bits would be 27 GiB
    assert memory.largest < 300 << 20


@pytest.mark.parametrize(
    "name, options, says",
    [
        ("draft", {"scope": "heads"}, "scope must be one of row, head, layer, adaptive, got 'heads'"),
        ("draft", {"order": "hilbert"}, "order must be one of raster, patches, cubes, columns, curve, got 'hilbert'"),
        ("jenga", {"top_p": 1.5}, "top_p must be a number above 0 and at most 1, got 1.5"),
        ("jenga", {"first_frame": "yes"}, "first_frame must be True or False, got 'yes'"),
        ("nabla", {"top_p": 0}, "top_p must be a number above 0 and at most 1, got 0"),
        ("nabla", {"window": [3, 3]}, r"or three of them for frames, rows and columns, got \[3, 3\]"),
        ("nabla", {"window": [3, 2, 3]}, "window must be odd along each axis"),
        ("nabla", {"window": [3, 0, 3]}, r"window must be a whole number of at least 1, or .*, got \[3, 0, 3\]"),
        ("xattention", {"stride": 5}, "stride must be one of 4, 8, 16, got 5"),
        ("xattention", {"tau": True}, "tau must be a number"),
        ("sparge", {"similarity": 2}, "similarity must be 'auto' or a number from -1 to 1, got 2"),
        ("sparge", {"sink": 1}, "sink must be True or False, got 1"),
        ("vmoba", {"scope": "adaptive"}, "scope must be one of row, head, layer, got 'adaptive'"),
        ("adaspa", {"search_at": [0.2, 3]}, r"search_at must be shares of the run in \[0, 1\]"),
        ("adaspa", {"search_at": 0.2}, "search_at must be shares"),
        ("adaspa", {"search_at": ["a"]}, "search_at must be shares"),
        ("adaspa", {"reuse_lse": "no"}, "reuse_lse must be True or False, got 'no'"),
        ("adaspa", {"rows": -1}, "rows must be a whole number of at least 0, got -1"),
        ("sparsed", {"rows": 0.5}, "rows must be a whole number of at least 0, got 0.5"),
        ("oracle", {"scope": None}, "scope must be one of"),
        ("random", {"order": 3}, "order must be one of"),
    ],
    ids=str,
)
def test_a_bad_option_is_said_in_one_line(name, options, says):
    with pytest.raises(ValueError, match=says) as error:
        methods.create(name, options)
    assert "\n" not in str(error.value)


@every
def test_options_survive_json(name):
    import dittools

    config = dittools.Config(method=name, options={k: d for k, (d, _) in methods.options(name).items()})
    again = dittools.Config.from_json(config.to_json())
    assert methods.create(name, again.options) == methods.create(name, {})


def test_a_budget_smaller_than_what_is_always_kept_is_noted_and_no_row_of_the_picture_goes_without_it():
    grid = TokenGrid(2, 10, 10, text=40, text_position="last")  # 8 of 200 tokens share a block with text
    for name in EVERY:
        plan = plan_of(name, *scene(grid), call(grid, 0.95))
        assert any("0.95 was asked: blocks that hold text too" in note for note in plan.notes), name
        assert not any("was asked" in note for note in plan_of(name, *scene(grid), call(grid, 0.8)).notes), name
        assert plan.mask.keep[..., :12, :12].any(-1).all(), f"{name}: a row of the picture sees nothing but text"


def test_yardsticks_call_themselves_so():
    for name in YARDSTICKS:
        assert methods.METHODS[name].summary.startswith("yardstick")
