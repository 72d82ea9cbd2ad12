"""Neighbourhood windows, against a brute-force reading of NATTEN's definition and published facts."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools import methods
from dittools.methods.gna import GNA
from dittools.methods.sta import STA
from dittools.orders.tiles import tiles
from dittools.selection.windows import fitted, growing, sees
from dittools.tokens import TokenGrid


def one_axis(length, window, stride, dilation):
    """The definition for one query at a time: its group's leader, the window around it, moved inwards at borders."""
    kept = np.zeros((length, length), dtype=bool)
    for query in range(length):
        group = [i for i in range(length) if i % dilation == query % dilation]
        place, last = group.index(query), len(group) - 1
        leader = min((place // stride) * stride + stride // 2, last)
        start = max(leader - window // 2, 0)
        end = leader + window // 2 + window % 2  # one past the window
        if end > last + 1:
            start -= end - (last + 1)
        start = max(start, 0)
        for i in range(start, start + window):
            kept[query, group[i]] = True
    return kept


axis = st.integers(1, 23).flatmap(
    lambda x: st.integers(1, x).flatmap(
        lambda d: st.integers(1, x // d).flatmap(
            lambda w: st.tuples(st.just(x), st.just(w), st.integers(1, w), st.just(d))
        )
    )
)


@settings(max_examples=150, deadline=None)
@given(axis)
def test_an_axis_is_what_the_definition_says(case):
    kept = sees(*case)
    assert np.array_equal(kept, one_axis(*case))
    window = case[1]
    assert (kept.sum(1) == window).all(), "windows are moved at borders and never cut"
    assert kept.diagonal().all()


@settings(max_examples=60, deadline=None)
@given(axis)
def test_a_larger_window_sees_all_that_a_smaller_one_sees(case):
    length, window, stride, dilation = case
    if window < length // dilation:
        assert sees(length, window + 1, stride, dilation)[sees(*case)].all()


def test_stride_equal_to_the_window_is_blocked_attention():
    kept = sees(21, 7, 7)
    assert np.array_equal(kept, np.kron(np.eye(3), np.ones((7, 7))) > 0)


PRIMES = [(3, 5, 11), (5, 7, 13), (1, 17, 19)]
SETTINGS = {
    "sliding": {"window": [3, 3, 5]},
    "even": {"window": [2, 4, 6]},
    "stride": {"window": [3, 4, 7], "stride": [2, 3, 4]},
    "blocked": {"window": [2, 3, 4], "stride": [2, 3, 4]},
    "dilation": {"window": [2, 2, 3], "dilation": [1, 2, 3]},
    "dilation and stride": {"window": [2, 2, 4], "stride": [1, 2, 3], "dilation": [1, 3, 2]},
    "larger than the grid": {"window": [99, 3, 99], "stride": [50, 1, 2]},
}


def token_mask(grid, options):
    """[S, S] bool by the definition, for grids without text."""
    given = [options["window"], options.get("stride", [1] * 3), options.get("dilation", [1] * 3)]
    kept = np.ones((1, 1), dtype=bool)
    for axis_values in zip(*fitted(grid.shape, *map(tuple, given)), grid.shape, strict=True):
        window, stride, dilation, length = axis_values
        kept = np.kron(kept, one_axis(length, window, stride, dilation))
    return kept > 0


def by_block(kept, order, size):
    """Block pairs that hold a kept token pair, [M, M]."""
    order = order.numpy()
    kept = kept[order][:, order]
    starts = np.arange(0, len(order), size)
    return np.logical_or.reduceat(np.logical_or.reduceat(kept, starts, 0), starts, 1)


@pytest.mark.parametrize("size", [8, 13, 64])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shape", PRIMES, ids=str)
def test_gna_keeps_exactly_the_block_pairs_that_hold_a_pair_of_a_window(shape, name, size):
    grid = TokenGrid(*shape)
    for tile in ([1, 4, 2], [2, 2, 3]):
        pattern = methods.create("gna", {**SETTINGS[name], "tile": tile}).pattern(grid, 0.8, size)
        want = by_block(token_mask(grid, SETTINGS[name]), pattern.order, size)
        want |= np.eye(len(want), dtype=bool)
        assert np.array_equal(pattern.mask.keep[0, 0].numpy(), want)


def test_a_window_on_the_way_to_the_budget_is_the_mask_of_that_window():
    grid, size = TokenGrid(8, 16, 16), 64
    for sparsity in (0.5, 0.8):
        by_budget = GNA(stride=1).pattern(grid, sparsity, size)
        said = by_budget.notes[0].split("window ")[1].split(",")[0]
        window = [int(n) for n in said.split("x")]
        kept, inside = (p.mask.keep[0, 0] for p in (by_budget, GNA(window=window, stride=1).pattern(grid, 0, size)))
        assert kept[inside].all(), "the window that is named is kept whole"
        assert (window[0] * 2 - window[1]) in range(-3, 4) and abs(window[1] - window[2]) <= 1, "in proportion"


def test_a_window_that_was_asked_for_is_not_changed_by_the_sparsity():
    grid = TokenGrid(5, 7, 13)
    one, other = (GNA(window=(3, 3, 5)).pattern(grid, s, 16) for s in (0.5, 0.9))
    assert torch.equal(one.mask.keep, other.mask.keep)
    tokens = token_mask(grid, {"window": [3, 3, 5]}).mean()
    assert f"{tokens:.1%} of the video's pairs by token" in one.notes[0]
    assert f"{one.mask.density().item():.1%} of all pairs by blocks of 16" in one.notes[0]


def test_a_stride_larger_than_the_window_is_refused():
    with pytest.raises(ValueError, match=r"stride .* must not be larger than window"):
        GNA(window=(3, 3, 3), stride=(1, 4, 1))


@pytest.mark.parametrize("window", [(3, 3, 3), (1, 3, 1), (3, 1, 5)])
def test_sta_is_gna_whose_stride_is_the_tile_and_whose_window_is_whole_tiles(window):
    grid, tile = TokenGrid(6, 12, 20), (2, 4, 4)
    asked = tuple(w * t for w, t in zip(window, tile, strict=True))
    sta = STA(window=window, tile=tile).pattern(grid, 0.8, 32)
    gna = GNA(window=asked, stride=tile, tile=tile).pattern(grid, 0.8, 32)
    assert torch.equal(sta.order, gna.order) and torch.equal(sta.mask.keep, gna.mask.keep)
    # Whole tiles as blocks: nothing but what the windows hold is computed.
    share = np.prod([min(w, x // t) * t / x for w, t, x in zip(window, tile, grid.shape, strict=True)])
    assert sta.mask.density().item() == pytest.approx(share)


@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_left_to_itself_gna_moves_by_tiles_and_wastes_no_block(sparsity):
    grid, tile = TokenGrid(8, 16, 24), (2, 4, 8)
    (sta, gna) = (m(tile=tile).pattern(grid, sparsity, 64) for m in (STA, GNA))
    assert torch.equal(sta.mask.keep, gna.mask.keep)
    kept = gna.mask.keep[0, 0].sum(-1)
    assert kept.min() > kept.max() / 2, "tiles at a border see as much as others"


def test_sta_windows_are_of_tiles_on_a_grid_that_they_do_not_divide():
    grid, tile, window = TokenGrid(5, 7, 11), (2, 3, 4), (3, 1, 1)
    pattern = STA(window=window, tile=tile).pattern(grid, 0.8, 8)
    at = grid.positions().numpy() // tile
    count = [-(-x // t) for x, t in zip(grid.shape, tile, strict=True)]
    kept = np.ones((grid.video, grid.video), dtype=bool)
    for axis in range(3):
        half = window[axis] // 2
        middle = np.clip(at[:, axis], half, count[axis] - 1 - half)
        kept &= np.abs(middle[:, None] - at[:, axis]) <= half
    assert np.array_equal(pattern.mask.keep[0, 0].numpy(), by_block(kept, pattern.order, 8))


def test_an_even_sta_window_sees_as_far_to_both_sides():
    grid, tile = TokenGrid(4, 20, 20), (2, 4, 4)
    even, odd = (STA(window=w, tile=tile).pattern(grid, 0.8, 32) for w in ((1, 2, 4), (1, 3, 5)))
    assert torch.equal(even.mask.keep, odd.mask.keep)


def test_windows_grow_in_proportion_and_one_step_at_a_time():
    path = growing((1, 1, 1), (8, 16, 32), (8, 16, 32))
    assert path[0] == (1, 1, 1) and path[-1] == (8, 16, 32)
    for before, after in itertools.pairwise(path):
        assert sum(after) - sum(before) == 1 and all(a >= b for a, b in zip(after, before, strict=True))
    assert all(abs(t / 8 - w / 32) <= 1 / 8 for t, _, w in path)


def test_a_mask_for_720p_is_made_in_seconds():
    import time

    grid = TokenGrid(21, 45, 80)
    for name in ("gna", "sta", "clear", "radial", "attention_tile"):
        begun = time.process_time()
        pattern = methods.create(name, {}).pattern(grid, 0.8, 128)
        assert time.process_time() - begun < 2, name
        assert abs(1 - pattern.mask.density().item() - 0.8) < 0.02
    assert torch.equal(tiles(grid, (2, 8, 8)).sort().values, torch.arange(75_600, dtype=torch.int32))
