"""Orders, tables and methods that decide from a profile, on heads whose patterns are known."""

import copy
import dataclasses
import functools
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dittools import attention_profile as profiles
from dittools import calibrate
from dittools.attention import attend
from dittools.attention_profile import Made, Model, Profile, misfit
from dittools.calibrate import Size
from dittools.calibrate import paro as paro_calibration
from dittools.calibrate.attention_tile import tile_density
from dittools.calibrate.base import fill_groups
from dittools.calibrate.block_statistics import (
    block_statistics,
    incoherence,
    kept_share,
    order_loss,
    sparse_share,
)
from dittools.calibrate.sta import windows
from dittools.call_info import CallInfo, Timing
from dittools.clock import StepInfo
from dittools.config import Config
from dittools.kernels import measure_block_mass
from dittools.kernels.masks.block_mask import Partition
from dittools.kinds import kept_by_kind
from dittools.methods import AttentionCall, create
from dittools.methods.sta import STA
from dittools.orders.axes import AXES, axis_order, inverse
from dittools.runtime import AttentionEvent, Layer, Runtime
from dittools.scoped_cache import ScopedCache
from dittools.selection import profiled
from dittools.selection.geometric import TOLERANCE
from dittools.selection.modes import choose_modes
from dittools.selection.packed import pack_bits, unpack_bits
from dittools.selection.reference_frames import reference_frames
from dittools.selection.searched import reference_counts, searched_windows, tile_windows, to_budget
from dittools.selection.stripes import stripes
from dittools.selection.tilings import Tiling
from dittools.tokens import Part, TokenGrid
from tests.calibrate.by_token import tile_rows, window_rows
from tests.methods.scenes import shares
from tests.methods.watch import NoSync

GRID = TokenGrid(6, 8, 10)
TEXT = TokenGrid(5, 7, 9, text=13, text_position="last")
BESIDE = TokenGrid(5, 7, 9, 13, "last", (Part.of("reference", 1, 12, 11),))
STEPS, LAYERS, BLOCK = 8, 2, 16
KINDS = ("row", "place", "column", "keys", "silent", "flat")


# Orders


@pytest.mark.parametrize("number, axes", enumerate([(0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 1, 0), (2, 0, 1)]))
def test_the_six_orders_are_the_six_transposes_in_the_published_numbering(number, axes):
    grid = TokenGrid(2, 3, 4)
    video = np.arange(24).reshape(2, 3, 4)
    assert axis_order(grid, AXES[number]).tolist() == video.transpose(axes).flatten().tolist()


def test_an_order_written_out_by_hand():
    # columns run slowest, then rows, then frames: token = 4 * frame + 2 * row + column
    assert axis_order(TokenGrid(2, 2, 2), "whf").tolist() == [0, 4, 2, 6, 1, 5, 3, 7]


@pytest.mark.parametrize("grid", [TokenGrid(3, 4, 5), TokenGrid(2, 3, 7, 5, "first"), TEXT], ids=str)
@pytest.mark.parametrize("axes", AXES)
def test_an_inverse_brings_every_token_back_and_text_never_moves(grid, axes):
    order = axis_order(grid, axes)
    tokens = torch.randn(grid.tokens)
    assert torch.equal(tokens[order.long()][inverse(order).long()], tokens)
    assert torch.equal(order[grid.text_slice], torch.arange(grid.tokens, dtype=torch.int32)[grid.text_slice])


def test_on_a_cube_four_orders_are_their_own_inverse_and_two_are_each_others():
    cube = TokenGrid(3, 3, 3)
    of = {axis_order(cube, axes).numpy().tobytes(): n for n, axes in enumerate(AXES)}
    assert [of[inverse(axis_order(cube, axes)).numpy().tobytes()] for axes in AXES] == [0, 1, 5, 3, 4, 2]


def test_an_unknown_order_is_refused_by_name():
    with pytest.raises(ValueError, match="fhw, fwh, hwf, hfw, whf, wfh, got 'hhw'"):
        axis_order(GRID, "hhw")


# Block scores


def test_block_statistics_are_those_of_the_map_written_out():
    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 37, 3, 8).unbind(0)
    orders = torch.stack([torch.arange(37), torch.randperm(37)]).int()
    found = block_statistics(q, k, orders, Partition(37, 16), [0, 2], 1.5, 0.03)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 1.5).softmax(-1)
    cut = [slice(0, 16), slice(16, 32), slice(32, 37)]
    for o, h, (n, rows), (m, columns) in itertools.product(range(2), range(3), enumerate(cut[::2]), enumerate(cut)):
        block = weights[:, h][:, orders[o].long()][:, :, orders[o].long()][:, rows, columns]
        torch.testing.assert_close(found.mass[o, h, n, m], block.sum((1, 2)).mean())
        torch.testing.assert_close(found.peak[o, h, n, m], block.amax((1, 2)).mean())
        torch.testing.assert_close(found.small[o, h, n, m], (block < 0.03).float().mean())


def test_incoherence_is_largest_over_mean():
    q = k = torch.zeros(1, 32, 1, 4)
    found = block_statistics(q, k, torch.arange(32)[None], Partition(32, 16), [0, 1], 1.0, 1e-3)
    torch.testing.assert_close(incoherence(found, torch.full((2, 2), 256.0)), torch.ones(1, 1))
    torch.testing.assert_close(kept_share(found, 0.5), torch.tensor([[0.5]]))
    assert sparse_share(found, 0.9) == 0


def test_the_order_with_more_sparse_blocks_wins_where_the_printed_formula_would_pick_the_worst():
    sparse, quant = torch.tensor([[0.1], [0.7], [0.4]]), torch.ones(3, 1)
    assert order_loss(sparse, quant, 0.5).argmin(0) == 1
    assert (0.5 * sparse / sparse.sum(0) + 0.5 * quant / quant.sum(0)).argmin(0) == 0
    assert order_loss(torch.ones(3, 1), torch.tensor([[3.0], [1.0], [2.0]]), 0.5).argmin(0) == 1


# What profiles keep


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(0, 1000))
def test_bits_give_back_the_mask(count, seed):
    keep = torch.rand(2, 3, count, generator=torch.Generator().manual_seed(seed)) < 0.4
    assert torch.equal(unpack_bits(pack_bits(keep), count), keep)


def test_the_first_column_is_the_lowest_bit():
    assert pack_bits(torch.tensor([True, False, True, False, False, False, False, True, True])).tolist() == [133, 1]


def test_mass_survives_a_byte_to_within_three_percent():
    torch.manual_seed(0)
    partition = Partition(100, 16)
    mass = measure_block_mass(*torch.randn(2, 1, 100, 2, 32).unbind(0), partition, partition, scale=0.4)
    again = profiled.decode_mass(profiled.encode_mass(mass * 7), partition)
    assert ((again / mass) - 1).abs().max() < 0.05
    torch.testing.assert_close(again.sum(-1), partition.sizes().float().expand(1, 2, -1))
    assert profiled.decode_mass(torch.zeros(3, 3, dtype=torch.uint8), Partition(3, 1)).sum() == 0


def test_pooled_masses_are_those_of_longer_blocks():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 100, 2, 16).unbind(0)
    small, large = (measure_block_mass(q, k, Partition(100, n), Partition(100, n)) for n in (16, 32))
    torch.testing.assert_close(profiled.pool_mass(small, 2), large)


def test_text_and_a_ragged_tail_are_always_kept_but_no_whole_tail_and_no_tail_above_half_the_budget():
    assert profiled.always_kept(TokenGrid(4, 4, 4), Partition(64, 16)).sum() == 0
    ragged = profiled.always_kept(TokenGrid(5, 5, 5), Partition(125, 16), 0.5)
    assert ragged[-1].all() and ragged[:, -1].all() and not ragged[:-1, :-1].any()
    assert profiled.always_kept(TokenGrid(5, 5, 5), Partition(125, 16), 0.1).sum() == 0
    text = profiled.always_kept(TokenGrid(4, 4, 4, 16, "first"), Partition(80, 16), 0.2)
    assert text[0].all() and text[:, 0].all() and not text[1:, 1:].any()


def test_a_group_in_which_a_layer_was_silent_takes_the_nearest_one():
    values = torch.arange(8.0).view(4, 2)
    event = torch.tensor([[True, False], [False, False], [False, True], [True, True]])
    assert fill_groups(values, event).tolist() == [[0, 5], [0, 5], [6, 5], [6, 7]]


# The budget of modes


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 3), st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_modes_are_the_best_of_all_combinations_near_the_budget(heads, seed, budget):
    generator = np.random.default_rng(seed)
    density = np.array([0.0, 0.1, 0.3, 0.5, 1.0])
    loss = generator.random((heads, 5))
    chosen = choose_modes(loss, density, budget)
    every = list(itertools.product(range(5), repeat=heads))
    spent = {c: sum(density[list(c)]) for c in every}
    near = [c for c in every if abs(spent[c] - budget * heads) <= heads / 200 + 1e-9]
    total = {c: sum(loss[h, m] for h, m in enumerate(c)) for c in every}
    if near:
        assert total[tuple(chosen)] == pytest.approx(min(total[c] for c in near))
    else:
        assert abs(spent[tuple(chosen)] - budget * heads) <= min(abs(s - budget * heads) for s in spent.values()) + 0.01


def test_the_whole_budget_is_full_for_every_head_of_many():
    loss = np.ones((40, 3)) * [0, 0, 5.0]
    assert choose_modes(loss, np.array([0.0, 0.8, 1.0]), 1.0) == [2] * 40


def test_stripes_are_the_heaviest_key_blocks_for_every_query():
    keep = stripes(TokenGrid(4, 4, 4), Partition(64, 16), torch.tensor([0.1, 0.5, 0.1, 0.3]), 0.5)
    assert keep.tolist() == [[False, True, False, True]] * 4


# Methods from calibrated profiles


def heads(grid, kinds, step=0, sharpness=9.0, size=32):
    """q, k, v ``[1, S, len(kinds), size]``: a "row" head attends to its query's own row of its frame, "column" to its
    column of the frame, "place" to the same place in all frames, "keys" to a few tokens, a "silent" head gives next to
    nothing, a "flat" head attends to all alike. Video tokens alone.
    """
    generator = torch.Generator().manual_seed(step)
    at = torch.full((grid.tokens, 3), -1)
    at[grid.video_slice] = grid.positions()
    groups = {
        "row": at[:, 0] * 100 + at[:, 1],
        "column": at[:, 0] * 100 + at[:, 2],
        "place": at[:, 1] * 100 + at[:, 2],
    }
    q, k, v = torch.zeros(3, 1, grid.tokens, len(kinds), size).unbind(0)
    v = torch.randn(v.shape, generator=generator)
    for h, kind in enumerate(kinds):
        if kind in groups:
            marks = torch.randn(2000, size, generator=torch.Generator().manual_seed(7))
            q[0, :, h] = torch.nn.functional.normalize(marks, dim=-1)[groups[kind]] * sharpness
            k[0, :, h] = q[0, :, h]
        elif kind == "keys":
            q[0, :, h, 0] = sharpness
            k[0, 32:48, h, 0] = sharpness
        elif kind == "silent":
            v[0, :, h] *= 1e-3
    return q, k, v


def observe(calibrator, grid, kinds):
    """All rounds of a run in which every layer has these heads."""
    for round in range(calibrator.rounds):
        for step in range(STEPS):
            for layer in range(LAYERS):
                step_info = StepInfo(False, step, STEPS, "cond", True)
                calibrator.observe(AttentionEvent(layer, *heads(grid, kinds, step), 0.2, step_info, grid), round)


@functools.cache
def tables(name, grid, kinds):
    calibrator = calibrate.CALIBRATORS[name](Size(LAYERS, len(kinds), STEPS, BLOCK))
    observe(calibrator, grid, kinds)
    return calibrator.tables()


def profile_for(name, grid=GRID, kinds=KINDS):
    section, arrays = copy.deepcopy(tables(name, grid, kinds))
    model = Model("Toy", "0" * 16, LAYERS, len(kinds))
    made = Made("toy", STEPS)
    return Profile(model, grid, made, {name: section}, {f"{name}.{key}": value for key, value in arrays.items()})


def call(profile, sparsity=0.8, step=3, layer=1, block_size=BLOCK):
    return AttentionCall(
        layer, LAYERS, "cond", step, STEPS, profile.grid, sparsity, 0.2, torch.Generator(), block_size, profile=profile
    )


@pytest.fixture(scope="module", params=["paro", "sparse_vdit"])
def named(request):
    return request.param


@pytest.fixture(scope="module", params=[GRID, TEXT, BESIDE], ids=("alone", "text", "reference"))
def made(request, named):
    return named, profile_for(named, request.param)


@pytest.mark.parametrize("name", ["paro", "sparse_vdit", "svg", "sta", "attention_tile"])
@pytest.mark.parametrize("profiled", [TEXT, dataclasses.replace(TEXT, text=0, text_position="none")], ids=["13", "0"])
def test_a_call_with_longer_or_shorter_text_behind_the_picture_keeps_to_its_profile(name, profiled):
    profile = profile_for(name, profiled)
    for text in (0, 5, 40):
        grid = dataclasses.replace(TEXT, text=text, text_position="last" if text else "none")
        told = dataclasses.replace(call(profile), grid=grid)
        plan = create(name, {}).plan(*heads(grid, KINDS), told)
        kept = kept_by_kind(plan, grid)
        if text:
            assert kept[1].min() > 1 - 1e-6
        assert abs((plan.share if kept is None else kept[0, 0]) - 0.2) <= 0.02


@pytest.mark.parametrize("name", ["paro", "sparse_vdit"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"text_position": "first"}, " and 13 text in front"),
        ({"parts": (Part.of("reference", 1, 2, 3),)}, ", 6 of reference and 13 text"),
    ],
    ids=["text in front", "reference"],
)
def test_a_call_in_whose_blocks_something_else_is_stays_dense_and_says_so(name, change, said):
    profile, grid = profile_for(name, TEXT), dataclasses.replace(TEXT, **change)
    dense = create(name, {}).plan(*heads(grid, KINDS), dataclasses.replace(call(profile), grid=grid))
    tokens = "5 x 7 x 9 tokens"
    assert dense.reason == f"this profile is for {tokens} and 13 text, and this call has {tokens}{said}"


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
@pytest.mark.parametrize("block_size", [16, 32])
def test_sparsity_binds_whatever_the_heads(made, sparsity, block_size):
    name, profile = made
    plan = create(name, {}).plan(*heads(profile.grid, KINDS), call(profile, sparsity, block_size=block_size))
    assert abs(1 - shares(plan, profile.grid).mean() - sparsity) <= 0.02
    assert plan.notes == ()


@pytest.mark.parametrize("sparsity", [0.85, 0.9])
def test_a_high_sparsity_binds_too(named, sparsity):
    profile = profile_for(named)
    plan = create(named, {}).plan(*heads(GRID, KINDS), call(profile, sparsity))
    assert abs(1 - plan.mask.density().mean() - sparsity) <= 0.02


def test_a_full_budget_is_dense(made):
    name, profile = made
    q, k, v = heads(profile.grid, KINDS)
    plan = create(name, {}).plan(q, k, v, call(profile, 0.0))
    assert plan.mask.keep.all()
    out, _ = attend(q, k, v, plan, 0.2)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.2)
    torch.testing.assert_close(out, dense.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_text_is_dense_both_ways():
    for name in ("paro", "sparse_vdit"):
        profile = profile_for(name, TEXT)
        plan = create(name, {}).plan(*heads(TEXT, KINDS), call(profile, 0.6))
        keep, text = plan.mask.keep, torch.arange(TEXT.video, TEXT.tokens) // BLOCK
        beside = torch.zeros(keep.shape[1], dtype=torch.bool)
        if plan.rows is not None:
            beside[plan.rows.heads] = True
        assert keep[:, ~beside][..., text, :].all()
        if name == "paro":  # a skipped head of sparse_vdit gives zeros for video, whatever the text says
            assert keep[..., text].all()


def test_paro_gives_every_head_the_order_in_which_its_group_is_a_run():
    profile = profile_for("paro")
    found = dict(zip(KINDS, profile.methods["paro"]["axes"][1], strict=True))
    assert found["row"][-1] == "w" and found["column"][-1] == "h" and found["place"][-1] == "f"


def test_paro_keeps_more_of_the_true_mass_than_the_same_blocks_in_raster():
    profile, kinds = profile_for("paro"), KINDS
    q, k, v = heads(GRID, kinds, step=99)  # not one that was calibrated
    plan = create("paro", {"scope": "head"}).plan(q, k, v, call(profile, 0.9))
    partition = Partition(GRID.tokens, BLOCK)
    raster = measure_block_mass(q, k, partition, partition, scale=0.2)
    for h in (1, 2):  # place, column
        order = plan.order[0, h].long()
        mass = measure_block_mass(q[:, order, h : h + 1], k[:, order, h : h + 1], partition, partition, scale=0.2)
        kept = (mass[0, 0] * plan.mask.keep[0, h]).sum()
        best = raster[0, h].flatten().topk(int(plan.mask.keep[0, h].sum())).values.sum()
        assert kept > 0.9 * GRID.tokens and kept > best + 0.2 * GRID.tokens


def test_paro_shares_one_mask_in_the_second_half_and_none_in_the_first():
    profile = profile_for("paro")
    assert profile.methods["paro"]["groups"] == [0, 1, 2, 3, 4, 4, 4, 4]
    profile.arrays["paro.mass"][0] = profile.arrays["paro.mass"][0].flip(-1)
    q, k, v = heads(GRID, KINDS)
    keeps = [create("paro", {}).plan(q, k, v, call(profile, step=s)).mask.keep for s in (0, 1, 5, 7)]
    assert torch.equal(keeps[2], keeps[3]) and not torch.equal(keeps[0], keeps[1])


def test_a_profile_too_large_for_masses_holds_masks_at_a_few_sparsities(monkeypatch, request):
    monkeypatch.setattr(paro_calibration, "MOST_MASS_BYTES", 0)
    tables.cache_clear()
    request.addfinalizer(tables.cache_clear)
    profile = profile_for("paro")
    assert "paro.mass" not in profile.arrays and profile.arrays["paro.keep.0.8"].dtype == torch.uint8
    assert profile.methods["paro"]["groups"] == [0, 0, 1, 1, 2, 2, 3, 3]
    q, k, v = heads(GRID, KINDS)
    plan = create("paro", {}).plan(q, k, v, call(profile, 0.81))
    assert abs(1 - plan.mask.density().mean() - 0.8) <= 0.02
    assert create("paro", {}).plan(q, k, v, call(profile, 0.0)).mask.keep.all()
    for wrong in (call(profile, 0.65), call(profile, 0.8, block_size=32)):
        with pytest.raises(ValueError, match=r"sparsity 0.5, 0.6, .* in blocks of 16.*calibrate again"):
            create("paro", {}).plan(q, k, v, wrong)


def test_a_sparsity_that_a_profile_cannot_give_is_noted():
    grid = TokenGrid(2, 6, 6, 40, "first")  # 8 of 72 tokens share a block with text
    for name in ("paro", "sta", "attention_tile"):
        plan = create(name, {}).plan(*heads(grid, KINDS), call(profile_for(name, grid), 0.97))
        skipped = 1 - kept_by_kind(plan, grid)[0, 0].item()
        assert skipped < 0.97 - TOLERANCE
        said = f"skips {skipped:.2f} of the picture's pairs, and 0.97 was asked: blocks that hold text too"
        assert any(said in note for note in plan.notes), name


def test_sparse_vdit_finds_the_pattern_of_every_head():
    kinds = ("row", "place", "keys", "silent")
    profile = profile_for("sparse_vdit", kinds=kinds)
    profile.methods["sparse_vdit"]["cost"] = {
        "raster": [0.0, 1.0],
        "ordered": [0.05, 1.0],
    }
    q, k, v = heads(GRID, kinds, step=99)
    plan = create("sparse_vdit", {}).plan(q, k, v, call(profile, 0.8))
    assert {name: int(count.sum()) for name, count in plan.facts.items()} == {
        "diagonal": 1,
        "multi_diagonal": 1,
        "stripe": 1,
        "skip": 1,
    }
    out, _ = attend(q, k, v, plan, 0.2)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.2)
    error = (out - dense.transpose(1, 2)).square().mean((0, 1, 3)) / dense.square().mean((0, 2, 3))
    assert (error[:3] < 0.05).all()
    assert not plan.mask.keep[0, 3].any() and not out[:, :, 3].any()


@pytest.mark.parametrize(
    "grid",
    [TokenGrid(5, 6, 7, 37, "first"), TokenGrid(5, 6, 7, 37, "last"), TokenGrid(5, 6, 8, 32, "first")],
    ids=str,
)
def test_a_skipped_head_gives_zeros_for_all_of_the_video_and_text_as_ever(grid, monkeypatch):
    monkeypatch.setattr("dittools.selection.head_patterns.choose_modes", lambda *_: [0, 1])
    section = {"block_size": BLOCK, "habits": [["full", 1.0], ["skip", 0.0]]}
    blocks = -(-grid.tokens // BLOCK)
    arrays = {"error": torch.zeros(4, 2, 2), "power": torch.ones(4, 2), "columns": torch.ones(4, 2, blocks)}
    arrays = {f"sparse_vdit.{key}": value for key, value in arrays.items()}
    profile = Profile(Model("Toy", "0" * 16, 4, 2), grid, Made("toy", STEPS), {"sparse_vdit": section}, arrays)
    q, k, v = torch.randn(3, 1, grid.tokens, 2, 16, generator=torch.Generator().manual_seed(0))
    plan = create("sparse_vdit", {}).plan(q, k, v, call(profile, 0.8))
    assert (plan.rows is None) == (grid.text % BLOCK == 0)
    out, lse = attend(q, k, v, plan, 0.2, return_lse=True)
    video, text = grid.video_slice, grid.text_slice
    assert not out[:, video, 1].any() and lse[:, 1, video].isneginf().all()
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.2)
    torch.testing.assert_close(out[:, text], dense.transpose(1, 2)[:, text], rtol=1e-4, atol=1e-5)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.2
    torch.testing.assert_close(lse[..., text], logits.logsumexp(-1)[..., text], rtol=1e-4, atol=1e-4)
    assert plan.density()[0, 1].item() == pytest.approx(grid.text / grid.tokens)
    kinds = kept_by_kind(plan, grid)
    assert kinds[1].tolist() == pytest.approx([1, 1]), "text sees all, and is counted so"


def test_sparse_vdit_weighs_what_a_launch_costs():
    profile = profile_for("sparse_vdit", kinds=("flat", "flat"))
    section = profile.methods["sparse_vdit"]
    (fixed, slope), (ordered, same) = section["cost"]["raster"], section["cost"]["ordered"]
    assert 0 <= fixed <= ordered and slope == same > 0
    section["cost"] = {"raster": [5.0, 1.0], "ordered": [0.0, 1.0]}
    dear = create("sparse_vdit", {"cost_weight": 100.0}).plan(*heads(GRID, ("flat", "flat")), call(profile, 0.5))
    assert set(dear.facts) <= {"multi_diagonal", "skip"}


@pytest.mark.parametrize("name", ["paro", "sparse_vdit"])
def test_planning_reads_nothing_back_from_the_device(name):
    # Meta tensors hold no values: whatever would wait for a GPU fails on them.
    profile = profile_for(name)
    q, k, v = (x.to("meta") for x in heads(GRID, KINDS))
    if name == "sparse_vdit":
        profile.methods[name]["cost"] = {"raster": [0.0, 1.0], "ordered": [0.0, 1.0]}
        with torch.device("cpu"):
            plan = create(name, {}).plan_layer(call(profile), torch.device("cpu"))
        assert plan.mask.keep.shape == (1, len(KINDS), 30, 30)
    else:
        plan = create(name, {}).plan(q, k, v, call(profile))
        assert plan.mask.keep.device.type == "meta" and plan.order.shape == (1, len(KINDS), GRID.tokens)


@pytest.mark.parametrize(
    "name, break_it, says",
    [
        ("paro", lambda p: p.arrays.pop("paro.axes"), "paro.axes must be"),
        ("paro", lambda p: p.arrays["paro.axes"].fill_(6), "axis order 6"),
        ("paro", lambda p: p.methods["paro"].update(groups=[0, 1]), "a group for each step"),
        ("paro", lambda p: p.methods["paro"].update(groups=[-1] * 8), "a group for each step"),
        ("paro", lambda p: p.methods["paro"].update(block_size=0), "block size"),
        ("paro", lambda p: p.arrays.update({"paro.mass": torch.zeros(5, 2, 6, 3, 3, dtype=torch.uint8)}), "paro.mass"),
        ("sparse_vdit", lambda p: p.methods["sparse_vdit"].pop("habits"), "needs habits"),
        ("sparse_vdit", lambda p: p.methods["sparse_vdit"].update(habits=[["skip", 0], ["round", 1]]), "needs habits"),
        ("sparse_vdit", lambda p: p.methods["sparse_vdit"].update(cost={"raster": "much"}), "costs must be"),
        ("sparse_vdit", lambda p: p.arrays.pop("sparse_vdit.error"), "sparse_vdit.error must be"),
    ],
)
def test_a_damaged_profile_is_one_line(name, break_it, says):
    profile = profile_for(name)
    break_it(profile)
    with pytest.raises(ValueError, match=says) as error:
        create(name, {}).plan(*heads(GRID, KINDS), call(profile))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, bad", [("paro", {"scope": "all"}), ("sparse_vdit", {"cost_weight": -1})])
def test_a_bad_option_is_refused(name, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        create(name, bad)


class Largest(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor made."""

    most = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        for value in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes():
                self.most = max(self.most, value.untyped_storage().nbytes() // value.element_size())
        return made


@pytest.mark.parametrize("name", calibrate.CALIBRATORS)
def test_calibration_never_holds_a_tensor_of_tokens_by_tokens(name):
    grid = TokenGrid(8, 16, 16)
    calibrator = calibrate.CALIBRATORS[name](Size(1, 1, 2, 64))
    q, k, v = torch.randn(3, 1, grid.tokens, 1, 16).unbind(0)
    with Largest() as seen:
        for round in range(calibrator.rounds):
            calibrator.observe(AttentionEvent(0, q, k, v, 0.2, StepInfo(False, 1, 2, "cond", True), grid), round)
    assert 1024 < seen.most < grid.tokens**2 // 2


# Windows, tiles and classes


def test_windows_are_widths_up_to_the_whole_axis():
    found = windows(TokenGrid(9, 16, 16), (4, 4, 4))
    assert {w[0] for w in found} == {1, 3} and {w[1] for w in found} == {1, 3, 4} and (3, 4, 4) in found
    assert len(windows(TokenGrid(21, 48, 80), (2, 4, 4))) <= 64


@pytest.mark.parametrize("grid", [GRID, TEXT], ids=str)
def test_a_window_is_moved_inside_at_edges_and_never_masks_text(grid):
    tile, window = (2, 2, 4), (1, 3, 1)
    rows = torch.arange(grid.tokens)
    seen, at = window_rows(grid, tile, window, rows), grid.positions().tolist()
    for i in range(0, grid.tokens, 7):
        for j in range(0, grid.tokens, 5):
            if i >= grid.video or j >= grid.video:
                assert seen[i, j]
                continue
            inside = True
            for a in range(3):
                p, r = (at[n][a] // tile[a] for n in (i, j))
                count, half = -(-grid.shape[a] // tile[a]), window[a] // 2
                inside &= abs(r - min(max(p, half), count - 1 - half)) <= half
            assert seen[i, j] == inside


def test_sta_windows_follow_the_heads_and_meet_the_budget():
    profile = profile_for("sta", TokenGrid(8, 16, 16), ("place", "row"))
    chosen = tile_windows(profile, layer=1, step=6, density=0.25)
    section = profile.methods["sta"]
    share = [section["density"][section["windows"].index(list(w))] for w in chosen]
    assert sum(share) / 2 == pytest.approx(0.25, abs=0.03)
    full = [-(-n // t) for n, t in zip(profile.grid.shape, section["tile"], strict=True)]
    assert chosen[0][0] == full[0] and chosen[1][2] == full[2] and chosen[1][1] < full[1]
    section["windows"][0] = [1, 1]
    with pytest.raises(ValueError, match="method sta needs windows"):
        tile_windows(profile, 1, 6, 0.25)


def test_reference_frames_are_spread_and_their_density_is_that_of_the_mask():
    assert reference_frames(9, 3) == [1, 4, 7] and reference_frames(9, 0) == [] and len(reference_frames(9, 9)) == 9
    for count in range(7):
        share = tile_rows(GRID, count, torch.arange(GRID.tokens)).float().mean().item()
        assert share == pytest.approx(tile_density(6, count))


def test_attention_tile_gives_frames_to_the_layers_that_need_them():
    profile = profile_for("attention_tile", GRID, ("row", "flat"))
    error = profile.arrays["attention_tile.error"]
    assert (error.diff(dim=-1) <= 1e-6).all() and (error[:, -1] < 1e-9).all()
    error[0] *= 100
    counts = reference_counts(profile, [0, 1], 0.5)
    assert counts[0] > counts[1]
    density = profile.methods["attention_tile"]["density"]
    assert sum(density[c] for c in counts) / 2 == pytest.approx(0.5, abs=0.1)


def test_svg_follows_the_classes_of_a_profile_without_probing():
    profile = profile_for("svg", TokenGrid(6, 12, 12), ("place", "row"))
    assert profile.methods["svg"]["classes"][1] == ["temporal", "spatial"]
    q, k, v = heads(profile.grid, ("row", "place"))  # the other way round than calibrated
    plan = create("svg", {}).plan(q, k, v, call(profile))
    assert {name: int(count.sum()) for name, count in plan.facts.items()} == {"spatial": 1, "temporal": 1}
    assert not torch.equal(plan.order[0, 0], torch.arange(profile.grid.tokens, dtype=torch.int32))
    assert torch.equal(plan.order[0, 1], torch.arange(profile.grid.tokens, dtype=torch.int32))


# Recipes that take a profile when they are given one

LARGE = {"video": TokenGrid(8, 16, 16), "text": TokenGrid(7, 14, 13, text=9, text_position="first")}
OPTIONS = {"sta": {"window": [3, 1, 3]}, "attention_tile": {"references": 2}}


@pytest.fixture(scope="module", params=LARGE)
def large(request):
    return LARGE[request.param]


def planned(name, profile, options=None, **how):
    asked = call(profile, **how)
    q, k, v = heads(profile.grid, ("place", "row"), step=asked.step)
    return create(name, options or {}).plan(q, k, v, asked), (q, k, v)


@pytest.mark.parametrize("sparsity", [0.3, 0.6, 0.8, 0.85])
def test_searched_windows_differ_between_heads_and_bind(large, sparsity):
    profile = profile_for("sta", large, ("place", "row"))
    plan, (q, k, v) = planned("sta", profile, sparsity=sparsity, layer=1)
    assert plan.mask.keep.shape[1] == 2 and not torch.equal(*plan.mask.keep[0])
    assert 1 - plan.density().mean().item() == pytest.approx(sparsity, abs=TOLERANCE)
    assert plan.mask.keep.diagonal(dim1=-2, dim2=-1).all()
    text = torch.zeros(plan.mask.query.count * BLOCK, dtype=torch.bool)
    text[: large.tokens] = large.is_text()[plan.order[0, 0].long()]
    text = text.view(-1, BLOCK).any(-1)
    assert plan.mask.keep[..., text, :].all() and plan.mask.keep[..., text].all()
    out, _ = attend(q, k, v, plan, 0.2)
    assert out.isfinite().all()


def test_a_head_sees_the_window_that_the_search_chose_for_it_in_tiles_of_the_profile():
    grid = LARGE["video"]
    profile = profile_for("sta", grid, ("place", "row"))
    plan, _ = planned("sta", profile, sparsity=0.85)
    tile, tried, _ = searched_windows(profile)
    every = torch.arange(grid.tokens)
    share = [window_rows(grid, tile, window, every).float().mean().item() for window in tried]
    chosen = tile_windows(profile, 1, 3, 0.15, share)  # tiles divide this grid and are blocks: the same by block
    assert chosen[0] != chosen[1]
    for h, window in enumerate(chosen):
        order = plan.order[0, 0].long()
        kept = torch.empty(grid.tokens, grid.tokens, dtype=torch.bool)
        kept[order[:, None], order] = plan.mask.to_tokens(0, h, every)
        assert torch.equal(kept, window_rows(grid, tile, window, every))


@pytest.mark.parametrize("name", OPTIONS)
def test_all_of_the_budget_is_dense(name, large):
    plan, _ = planned(name, profile_for(name, large, ("place", "row")), sparsity=0.0)
    assert plan.mask.keep.all()


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.85])
@pytest.mark.parametrize("layers", [(), (1, 2, 3)])
def test_layers_have_their_own_references_and_meet_the_budget_together(large, sparsity, layers):
    section, arrays = tables("attention_tile", large, ("row", "flat"))
    arrays = {key: value[:1].repeat(4, *(1,) * (value.ndim - 1)) for key, value in arrays.items()}
    arrays["error"] *= torch.tensor([1.0, 100, 1, 10])[:, None]
    profile = Profile(
        Model("Toy", "0" * 16, 4, 2),
        large,
        Made("toy", STEPS),
        {"attention_tile": copy.deepcopy(section)},
        {f"attention_tile.{key}": value for key, value in arrays.items()},
    )
    method, found, memo = create("attention_tile", {}), {}, ScopedCache()
    q = k = v = torch.zeros(1, large.tokens, 2, 8)
    for layer in layers or range(4):
        asked = dataclasses.replace(
            call(profile, sparsity=sparsity, layer=layer), layers=4, sparse_layers=layers, run_cache=memo
        )
        plan = method.plan(q, k, v, asked)
        found[layer] = plan.density().item()
        assert not any("was asked" in note for note in plan.notes), "a layer has its own share of the budget"
    # At 0.85 own frames are all there is to spend on.
    assert found[1] > found[2] or (sparsity == 0.85 and found[1] == found[2])
    assert 1 - sum(found.values()) / len(found) == pytest.approx(sparsity, abs=TOLERANCE)


@pytest.mark.parametrize("name", OPTIONS)
def test_without_a_profile_every_head_and_layer_is_alike_as_before(name):
    profile = profile_for(name, LARGE["video"], ("place", "row"))
    bare = dataclasses.replace(call(profile), profile=None)
    q, k, v = heads(profile.grid, ("place", "row"))
    plan = create(name, {}).plan(q, k, v, bare)
    pattern = create(name, {}).pattern(profile.grid, 0.8, BLOCK)
    assert torch.equal(plan.mask.keep, pattern.mask.keep) and plan.mask.keep.shape[:2] == (1, 1)
    assert create(name, {}).plan(q, k, v, dataclasses.replace(bare, layer=0)) is plan


def test_masks_are_made_once_for_the_steps_of_a_group(monkeypatch):
    profile = profile_for("sta", LARGE["video"], ("place", "row"))
    q, k, v = heads(profile.grid, ("place", "row"))
    first, method = call(profile, step=2), create("sta", {})
    plan = method.plan(q, k, v, first)
    groups, made = profile.methods["sta"]["groups"], len(first.run_cache)
    same = next(s for s in range(STEPS) if s != 2 and groups[s] == groups[2])
    monkeypatch.setattr("dittools.selection.windows.Windows.fixed", None)  # nothing may be made again
    again = method.plan(q, k, v, dataclasses.replace(first, step=same, branch="uncond"))
    assert torch.equal(again.mask.keep, plan.mask.keep) and len(first.run_cache) == made
    assert torch.equal(plan.pack()().mask.keep, plan.mask.keep)


@pytest.mark.parametrize("name, chooser", [
    ("sta", "searched.tile_windows"), ("attention_tile", "reference_frames.reference_counts"),
    ("sparse_vdit", "head_patterns.choose_modes"),
])  # fmt: skip
def test_a_later_run_finds_what_the_profile_decided_already(name, chooser, monkeypatch):
    profile = profile_for(name, LARGE["video"], ("place", "row"))
    q, k, v = heads(profile.grid, ("place", "row"))
    method = create(name, {})
    first = [method.plan(q, k, v, call(profile, sparsity)) for sparsity in (0.6, 0.8)]
    monkeypatch.setattr(f"dittools.selection.{chooser}", None)  # nothing may be chosen again
    later = [method.plan(q, k, v, call(profile, sparsity)) for sparsity in (0.6, 0.8)]
    for plan, again in zip(first, later, strict=True):
        assert torch.equal(plan.mask.keep, again.mask.keep)
        assert plan.order is again.order is None or torch.equal(plan.order, again.order)
    assert not torch.equal(first[0].mask.keep, first[1].mask.keep)
    with pytest.raises(TypeError):  # for other blocks everything is
        method.plan(q, k, v, call(profile, 0.8, block_size=2 * BLOCK))


@pytest.mark.parametrize("grid, tile, block_size", [
    (TokenGrid(8, 16, 16), (4, 4, 4), 64), (TokenGrid(7, 13, 11, text=9, text_position="first"), (2, 4, 4), 32),
])  # fmt: skip
def test_shares_of_windows_are_the_densities_of_their_masks(grid, tile, block_size):
    tiling = Tiling(grid, tile, block_size)
    found = [(a, b, c) for a in (1, 3, 2) for b in (3, 1) for c in (5, 1, 3, 2)]
    kept = tiling.shares(found)
    assert len(set(kept)) > 4
    for window, share in zip(found, kept, strict=True):
        plan = STA().plan_of(tiling.window(window), grid, torch.device("cpu"))
        assert share == pytest.approx(shares(plan, grid).item(), abs=1e-6)


def test_paro_keeps_the_plan_of_the_present_group_of_steps_alone():
    profile = profile_for("paro", LARGE["video"], ("place", "row"))
    assert profile.methods["paro"]["groups"] == [0, 1, 2, 3, 4, 4, 4, 4]
    q, k, v = heads(profile.grid, ("place", "row"))
    asked, method = call(profile), create("paro", {})
    steps = [method.plan(q, k, v, dataclasses.replace(asked, step=step)) for step in (2, 3, 4, 5)]
    assert steps[2] is steps[3] and len({id(plan) for plan in steps}) == 3
    assert sum(isinstance(key, tuple) and key[0] == "paro" for key in asked.run_cache) == 1
    assert torch.equal(steps[0].pack()().mask.keep, steps[0].mask.keep)


@pytest.mark.parametrize("name", OPTIONS)
def test_nothing_waits_for_the_device_once_masks_are_made(name):
    profile = profile_for(name, LARGE["text"], ("place", "row"))
    q, k, v = heads(profile.grid, ("place", "row"))
    asked, method = call(profile), create(name, {})
    method.plan(q, k, v, asked)
    with NoSync():
        method.plan(q, k, v, asked)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_setting_that_the_profile_decides_is_refused_beside_it(name):
    profile = profile_for(name, LARGE["video"], ("place", "row"))
    with pytest.raises(ValueError, match="and given this profile"):
        planned(name, profile, OPTIONS[name])


def test_a_tile_beside_a_profile_must_be_its_tile():
    profile = profile_for("sta", LARGE["video"], ("place", "row"))
    tile = profile.methods["sta"]["tile"]
    assert torch.equal(planned("sta", profile, {"tile": tile})[0].mask.keep, planned("sta", profile)[0].mask.keep)
    with pytest.raises(ValueError, match=r"tiles of \[2, 2, 2\], and this profile has windows of tiles of \[1, 4, 4\]"):
        planned("sta", profile, {"tile": 2})


@pytest.mark.parametrize("name", OPTIONS)
def test_a_profile_of_another_grid_is_refused_naming_both(name):
    profile = profile_for(name, LARGE["video"], ("place", "row"))
    why = misfit(profile, name, profile.model, TokenGrid(8, 16, 18), STEPS)
    assert "8 x 16 x 16 tokens" in why and "8 x 16 x 18 tokens" in why


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.floats(0, 1))
def test_shares_move_alike_until_their_mean_is_the_budget(shares, density):
    moved = [share if to is None else to for share, to in zip(shares, to_budget(shares, density), strict=True)]
    assert sum(moved) / len(moved) == pytest.approx(density, abs=TOLERANCE / 2 + 1e-3)
    order = sorted(range(len(shares)), key=shares.__getitem__)
    assert sorted(moved) == [moved[i] for i in order]


@pytest.mark.parametrize("correction", ["centroids", "rettention"])
def test_text_in_a_block_with_video_stays_exact_where_a_head_is_skipped_and_restored(tmp_path, correction):
    profile = profile_for("sparse_vdit", LARGE["text"])
    profile.save(tmp_path / "p.json")
    grid = profile.grid
    config = {"method": "sparse_vdit", "correction": correction, "profile": str(tmp_path / "p.json")}
    layers = [Layer(f"transformer.{depth}", depth) for depth in range(LAYERS)]
    runtime = Runtime(Config(sparsity=0.8, dense_steps=0, dense_layers=0, **config), layers, identity=profile.model)
    plans = []
    runtime.plan_watchers.append(lambda event, plan: plans.append(plan))
    # Of heads that are skipped by rights there would be nothing to see.
    q, k, v = torch.randn(3, 1, grid.tokens, len(KINDS), 16, generator=torch.Generator().manual_seed(0)) * 3
    full = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.2)
    times = torch.linspace(1000, 100, STEPS)
    for step in range(2):
        runtime.begin_call(CallInfo(Timing(times[step], times), grid, torch.device("cpu"), q.dtype))
        out = runtime.attend(0, q, k, v, dense=pytest.fail, scale=0.2)
        text = grid.text_slice
        torch.testing.assert_close(out[:, text], full.transpose(1, 2)[:, text], rtol=1e-4, atol=1e-4)
        runtime.end_call()
    assert len(plans) == 2 and all(plan.rows is not None for plan in plans)


def new_run(runtime, profile):
    info = CallInfo(Timing(1000.0, None), profile.grid, torch.device("cpu"), torch.float32)
    return runtime._setup.new_run(info, StepInfo(False, 0, STEPS, "cond", True), runtime._runs.clock)


def test_an_acceleration_reads_its_profile_once_however_large(tmp_path, monkeypatch):
    profile = profile_for("paro", LARGE["video"], ("place", "row"))
    profile.save(tmp_path / "p.json")
    reads, read = [], profiles._load
    monkeypatch.setattr(profiles, "STAYING_BYTES", 0)
    monkeypatch.setattr(profiles, "_load", lambda *given: reads.append(given) or read(*given))
    layers = [Layer(f"transformer.{depth}", depth) for depth in range(LAYERS)]
    config = Config(method="paro", profile=str(tmp_path / "p.json"))
    runtime = Runtime(config, layers, identity=profile.model)
    runs = [new_run(runtime, profile) for _ in range(2)]
    assert runs[0].profile is runs[1].profile and len(reads) == 1
    del runtime, runs
    Runtime(config, layers, identity=profile.model)
    assert len(reads) == 2  # nothing of it stayed


def test_a_run_says_which_layers_of_a_transformer_share_its_budget(tmp_path):
    profile = profile_for("attention_tile", LARGE["video"], ("place", "row"))
    two = dataclasses.replace(profile.model, layers=6)
    arrays = {key: value.repeat(3, *(1,) * (value.ndim - 1)) for key, value in profile.arrays.items()}
    path = tmp_path / "p.json"
    dataclasses.replace(profile, model=two, arrays=arrays).save(path)
    layers = [Layer(f"{name}.{depth}", depth) for name in ("transformer", "transformer_2") for depth in range(3)]
    runtime = Runtime(Config(method="attention_tile", sparsity=0.6, profile=str(path)), layers, identity=two)
    run = new_run(runtime, profile)
    assert [run.sparse_layers[i] for i in range(6)] == [(1, 2)] * 3 + [(4, 5)] * 3
