"""Tiles and the curve: permutations that keep text in place and put near tokens side by side."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.orders.curve import curve
from dittools.orders.tiles import fit_tile, tiles
from dittools.tokens import TokenGrid

side = st.integers(1, 13)


@st.composite
def grids(draw):
    text, where = draw(st.sampled_from([(0, "none"), (5, "first"), (5, "last")]))
    return TokenGrid(draw(side), draw(side), draw(side), text=text, text_position=where)


def check_permutation(order, grid):
    order = order.numpy()
    assert sorted(order) == list(range(grid.tokens))
    assert (order[grid.text_slice] == np.arange(grid.tokens)[grid.text_slice]).all()
    return order[grid.video_slice] - grid.video_start


@settings(max_examples=60, deadline=None)
@given(grids(), st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5)))
def test_tiles_are_runs_of_positions_whole_ones_first(grid, shape):
    at = grid.positions().numpy()[check_permutation(tiles(grid, shape), grid)]
    tile = [tuple(row) for row in at // shape]
    runs = [tile[0]] + [b for a, b in itertools.pairwise(tile) if a != b]
    assert len(runs) == len(set(tile)), "the tokens of a tile are side by side"
    size = {t: tile.count(t) for t in set(tile)}
    whole = [size[t] == np.prod(shape) for t in runs]
    assert whole == sorted(whole, reverse=True)
    for t in set(tile):
        inside = [tuple(row) for row, of in zip(at, tile, strict=True) if of == t]
        assert inside == sorted(inside), "raster inside"


@settings(max_examples=120, deadline=None)
@given(grids())
def test_neighbours_on_the_curve_touch(grid):
    at = grid.positions().numpy()[check_permutation(curve(grid), grid)]
    assert np.abs(np.diff(at, axis=0)).max(initial=0) <= 1
    if all(x % 2 == 0 for x in grid.shape):
        assert (np.abs(np.diff(at, axis=0)).sum(1) == 1).all(), "by a face, where sides are even"


@pytest.mark.parametrize("order", ["curve", "tiles"])
def test_blocks_are_more_compact_than_in_raster_order(order):
    grid, size = TokenGrid(20, 30, 52), 128
    made = curve(grid) if order == "curve" else tiles(grid, fit_tile(grid, size))

    def spread(tokens):
        at = grid.positions().numpy()[tokens]
        blocks = [at[i : i + size] for i in range(0, len(at), size)]
        return np.mean([(block.max(0) - block.min(0)).sum() for block in blocks])

    assert spread(made.numpy()) < 0.5 * spread(np.arange(grid.tokens))


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize(
    "shape, within", [((21, 45, 80), 4), ((21, 30, 52), 4), ((9, 16, 16), 4), ((1, 64, 64), 2), ((13, 30, 45), 4)]
)
def test_the_tile_that_fits_holds_a_block_and_has_no_long_side(shape, within, size):
    tile = fit_tile(TokenGrid(*shape), size)
    assert np.prod(tile) == size
    assert tile[0] == 1 if shape[0] == 1 else max(tile[1:]) <= within * min(tile[1:])
