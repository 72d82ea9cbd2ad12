"""The simulator against a count of tiles by hand, the paper's bounds, and the rule for windows that waste nothing."""

import numpy as np
import pytest

from dittools.methods.gna import GNA
from dittools.selection.windows import sees, window_starts
from dittools.simulate import simulate, tiles_visited
from dittools.tokens import TokenGrid


def run(grid, window, stride=1, tile=(2, 8, 8), key_tile=None, dilation=1):
    return simulate(TokenGrid(*grid), GNA(window=window, stride=stride, dilation=dilation, tile=tile), 128, key_tile)


@pytest.mark.parametrize("case", [(13, 5, 1, 1, 4, 4), (17, 6, 3, 1, 4, 2), (19, 4, 2, 3, 2, 3), (16, 16, 5, 1, 8, 4)])
def test_tiles_that_an_axis_visits_are_counted_as_by_hand(case):
    length, window, stride, dilation, tile, key_tile = case
    kept = sees(length, window, stride, dilation)
    want, tiles = [], 0
    for group in range(dilation):
        at = np.arange(group, length, dilation)
        inside = kept[np.ix_(at, at)]
        for first in range(0, len(at), tile):
            keys = np.flatnonzero(inside[first : first + tile].any(0))
            want.append(keys[-1] // key_tile - keys[0] // key_tile + 1)
        tiles += -(-len(at) // key_tile)
    assert tiles_visited(*case) == (want, tiles)


@pytest.mark.parametrize(
    "stride, speedup", [(1, 3.27), ((16, 8, 8), 11.11), ((18, 24, 24), 6.67)], ids=["sliding", "stride", "blocked"]
)
def test_the_papers_bounds_for_hunyuan_video(stride, speedup):
    found = run((30, 48, 80), (18, 24, 24), stride, tile=(4, 8, 8), key_tile=(2, 8, 8))
    # The paper does not count the queries that fill the last tile of 30 frames; its tiles there are 4 x 8 x 8 by
    # 2 x 8 x 8, which are the ones that give all three of its figures.
    assert found.tiles / found.visited_worst == pytest.approx(speedup, abs=0.01)
    assert found.speedup_worst == pytest.approx(speedup * 30 / 32, abs=0.01)
    assert found.flop_speedup == pytest.approx(11.11, abs=0.01)


@pytest.mark.parametrize(
    "grid, tile, window, flop, mean, worst, sliding",
    [
        ((21, 45, 80), (2, 8, 8), (21, 24, 40), 3.75, 2.89, 2.41, 1.92),
        ((21, 45, 80), (2, 8, 8), (12, 24, 24), 10.9, 7.87, 6.30, 4.29),
        ((33, 45, 80), (2, 8, 8), (18, 24, 24), 11.5, 9.10, 7.05, 4.76),
        ((1, 64, 64), (1, 16, 8), (1, 24, 24), 7.11, 4.27, 3.56, 3.01),
    ],
)
def test_bounds_with_padding(grid, tile, window, flop, mean, worst, sliding):
    found = run(grid, window, tuple(min(t, w) for t, w in zip(tile, window, strict=True)), tile)
    assert (found.flop_speedup, found.speedup_mean, found.speedup_worst) == pytest.approx((flop, mean, worst), rel=6e-3)
    assert run(grid, window, 1, tile).speedup_mean == pytest.approx(sliding, rel=6e-3)


def test_on_one_axis_nothing_is_wasted_when_window_less_stride_is_an_even_number_of_tiles():
    tile, checked = 4, 0
    for length in (48, 64, 96):
        for stride in range(tile, 25, tile):
            for window in range(stride, length, tile):
                start = window_starts(length, window, stride)
                inner = (start > 0) & (start < length - window)
                if not inner.any():  # every window lies at a border
                    continue
                exact = (start[inner] % tile == 0).all()
                assert exact == ((window - stride) % (2 * tile) == 0), (length, stride, window)
                visited, _ = tiles_visited(length, window, stride, 1, tile, tile)
                assert (max(visited) * tile == window) == exact, (length, stride, window)
                checked += 1
    assert checked > 100


def test_a_bound_is_never_above_that_of_the_tokens():
    for window in ((3, 5, 7), (4, 9, 16), (9, 16, 16)):
        for dilation in (1, (1, 1, 2)):
            found = run((9, 17, 32), window, 1, (2, 4, 4), dilation=dilation)
            assert found.speedup_worst <= found.speedup_mean + 1e-9 <= found.flop_speedup + 2e-9
            assert found.block_speedup <= found.flop_speedup + 1e-6


def test_blocks_that_are_tiles_compute_what_the_tiles_visit():
    found = run((8, 32, 32), (4, 16, 16), 1)
    assert found.padding == 0 and found.block_speedup == pytest.approx(found.speedup_mean)


def test_a_simulation_without_a_window_is_refused():
    with pytest.raises(ValueError, match="needs a window"):
        simulate(TokenGrid(4, 8, 8), GNA())
