"""Where blocks are: orders by name, what is forced, which blocks are near."""

import pytest
import torch

from dittools.orders.curve import curve
from dittools.orders.named import ORDERS, named_order, tile_shape
from dittools.orders.tiles import tiles
from dittools.scoped_cache import ScopedCache
from dittools.selection.neighbours import MOST, affordable, contact, touching, window
from dittools.selection.ordered_blocks import cut_into_blocks, ordered_blocks
from dittools.selection.packed import pack_bits, unpack_bits
from dittools.tokens import TokenGrid
from tests.methods.scenes import GRIDS, call


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_order_has_each_token_once_and_leaves_text_where_it_is(grid, order):
    grid = GRIDS[grid]
    found = named_order(order, grid, 64)
    if order == "raster":
        assert found is None
        return
    assert found.dtype == torch.int32 and found.sort().values.equal(torch.arange(grid.tokens, dtype=torch.int32))
    text = grid.is_text().nonzero().flatten()
    assert found[text].equal(text.int())


def test_an_unknown_order_is_said():
    with pytest.raises(ValueError, match="unknown order 'hilbert': use one of raster, patches"):
        named_order("hilbert", GRIDS["video"], 64)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 5), (4, 4, 4)], ids=str)
def test_the_tokens_of_a_tile_stand_side_by_side(shape):
    grid = TokenGrid(5, 9, 11, text=3, text_position="first")
    video = tiles(grid, shape)[grid.video_slice].long() - 3
    tile = (grid.positions() // torch.tensor(shape))[video]
    changes = (tile[1:] != tile[:-1]).any(-1).sum()
    assert changes + 1 == len(tile.unique(dim=0))


def test_tiles_hold_as_many_tokens_as_a_block():
    grid = TokenGrid(21, 45, 80)
    assert tile_shape("patches", grid, 128) == (1, 8, 16) and tile_shape("patches", grid, 64) == (1, 8, 8)
    assert tile_shape("cubes", grid, 128) == (4, 4, 8) and tile_shape("cubes", grid, 64) == (4, 4, 4)
    assert tile_shape("columns", grid, 128) == (21, 2, 3)
    assert tile_shape("cubes", TokenGrid(1, 64, 64), 64) == (1, 8, 8)


def test_blocks_along_the_curve_are_compact():
    grid = TokenGrid(8, 16, 16)
    spread = {}
    for name, order in (("curve", curve(grid)), ("raster", torch.arange(grid.tokens))):
        at = grid.positions()[order.long()].double().view(-1, 64, 3)
        spread[name] = (at - at.mean(1, keepdim=True)).square().sum(-1).mean()
    assert spread["curve"] < 0.3 * spread["raster"]


@pytest.mark.parametrize("order", ORDERS)
def test_text_and_diagonal_are_forced_and_nothing_else(order):
    grid = GRIDS["text last"]
    blocks = cut_into_blocks(grid, 16, order)
    token = torch.arange(grid.tokens) if blocks.order is None else blocks.order[0, 0].long()
    for m in range(blocks.partition.count):
        block = token[16 * m : 16 * (m + 1)]
        assert blocks.text[m] == grid.is_text()[block].any()
        assert (blocks.block_of_token[block] == m).all()
        assert (blocks.force[0, 0, m] == (blocks.text | (torch.arange(len(blocks.text)) == m) | blocks.text[m])).all()
    (picture,) = blocks.areas
    held = [int((~grid.is_text()[token[16 * m : 16 * (m + 1)]]).sum()) for m in range(picture.blocks.stop)]
    assert picture.blocks.start == 0 and picture.tokens.tolist() == held and sum(held) == grid.video


def test_blocks_are_cut_once_a_run():
    memo = ScopedCache()
    first, again = (
        ordered_blocks(call(GRIDS["video"], run_cache=memo), torch.device("cpu"), "curve") for _ in range(2)
    )
    assert first is again


@pytest.mark.parametrize("order", ["raster", "curve", "patches"])
def test_blocks_touch_where_tokens_do(order):
    grid = TokenGrid(3, 5, 6, text=5, text_position="first")
    blocks = cut_into_blocks(grid, 8, order)
    at, block = grid.positions(), blocks.block_of_token[grid.video_slice]
    near = (at[:, None] - at).abs().amax(-1) <= 1
    want = torch.zeros(blocks.partition.count, blocks.partition.count, dtype=torch.bool)
    want[block[:, None].expand(near.shape)[near], block.expand(near.shape)[near]] = True
    assert torch.equal(contact(grid, blocks, touching()) > 0, want)


def test_the_window_of_tiles_is_that_of_their_distances_and_shrinks_at_the_edges():
    grid, tile, extent = TokenGrid(5, 16, 12), (1, 4, 4), (3, 5, 1)
    blocks = cut_into_blocks(grid, 16, "patches")
    assert tile_shape("patches", grid, 16) == tile
    at = torch.cartesian_prod(torch.arange(5), torch.arange(4), torch.arange(3))  # of each block
    want = ((at[:, None] - at).abs() <= torch.tensor(extent) // 2).all(-1)
    assert torch.equal(contact(grid, blocks, window(tile, extent)) > 0, want)


def test_what_the_budget_cannot_pay_goes_farthest_first_and_a_note_says_so():
    grid = GRIDS["video"]
    blocks = cut_into_blocks(grid, 16, "curve")
    nearness = contact(grid, blocks, touching())
    near, notes = affordable(nearness, blocks, 1.0)
    assert notes == () and torch.equal(near[0, 0], nearness > 0)
    cut, notes = affordable(nearness, blocks, 0.2)
    assert "more than half of the budget of 0.20" in notes[0]
    assert (cut & ~near).sum() == 0 and cut[0, 0].diagonal().all()
    sizes = blocks.sizes.double()
    assert (sizes @ cut[0, 0].double() @ sizes).item() / grid.tokens**2 == pytest.approx(MOST * 0.2, abs=0.02)
    for row, kept in zip(nearness, cut[0, 0], strict=True):
        off = torch.ones(len(row), dtype=torch.bool)
        off[row.argmax()] = False
        if (kept & off).any() and (~kept & (row > 0)).any():
            assert row[kept & off].min() >= row[~kept].max() - 1e-9


@pytest.mark.parametrize("length", [1, 7, 8, 37])
def test_packed_masks_come_back_in_an_eighth_of_the_bytes(length):
    keep = torch.rand(2, 3, length, generator=torch.Generator().manual_seed(0)) < 0.4
    packed = pack_bits(keep)
    assert packed.shape == (2, 3, -(-length // 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_bits(packed, length), keep)
