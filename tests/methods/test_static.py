"""The static methods beside windows, against their definitions and published facts."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dittools.attention import attend
from dittools.methods import AttentionCall
from dittools.methods.attention_tile import AttentionTile
from dittools.methods.clear import Clear
from dittools.methods.radial import Radial
from dittools.methods.todo import ToDo
from dittools.orders.raster import raster
from dittools.selection.boxes import boxes_of
from dittools.selection.levels import mask_at
from dittools.selection.radial_bands import FLOOR, levels
from dittools.selection.reference_frames import reference_frames, tile_ranks
from dittools.selection.strided import PICKS
from dittools.tokens import TokenGrid


def by_block(kept, order, size):
    """Block pairs that hold a kept token pair, and the diagonal, [M, M]."""
    order = order.numpy()
    starts = np.arange(0, len(order), size)
    kept = kept[order][:, order]
    return np.logical_or.reduceat(np.logical_or.reduceat(kept, starts, 0), starts, 1) | np.eye(len(starts), dtype=bool)


def places(grid):
    """(frame, row, column) of every token by counting, -1 for text."""
    video = [(f, r, c) for f in range(grid.frames) for r in range(grid.height) for c in range(grid.width)]
    text = [(-1, -1, -1)] * grid.text
    return np.array(text + video if grid.text_position == "first" else video + text)


# ---- clear


@pytest.mark.parametrize("radius", [1, 2.5, 4, 7])
@pytest.mark.parametrize("shape", [(1, 17, 19), (3, 7, 11)], ids=str)
def test_clear_keeps_exactly_the_block_pairs_that_hold_a_pair_within_the_radius(shape, radius):
    grid, size = TokenGrid(*shape), 16
    pattern = Clear(radius=radius).pattern(grid, 0.8, size)
    _, row, column = places(grid).T
    kept = (row[:, None] - row) ** 2 + (column[:, None] - column) ** 2 < radius**2
    assert np.array_equal(pattern.mask.keep[0, 0].numpy(), by_block(kept, pattern.order, size))


@pytest.mark.parametrize("side, radius, percent", [(64, 8, 21), (64, 16, 33), (128, 8, 6.4)])
def test_clears_block_density_in_patches_is_the_known_one(side, radius, percent):
    pattern = Clear(radius=radius).pattern(TokenGrid(1, side, side), 0.8, 128)
    assert pattern.mask.density().item() * 100 == pytest.approx(percent, abs=0.5)


# ---- radial


def radial_pairs(grid, decay, block, sink):
    """[S, S] by the definition, one pair at a time."""
    frame = grid.height * grid.width
    power = 1
    while power <= frame:
        power *= 2
    at = [(f, r * grid.width + c) if f >= 0 else None for f, r, c in places(grid)]
    kept = np.ones((len(at), len(at)), dtype=bool)  # text stays
    for i, query in enumerate(at):
        for j, key in enumerate(at):
            if query is None or key is None:
                continue
            apart, gap = abs(query[0] - key[0]), abs(query[1] - key[1])
            bands = len(bin(apart)) - 2
            if apart <= 1 or (sink and key[0] == 0):
                continue
            whole = power / 2**bands
            kept[i, j] = gap <= max(decay * whole, block)
            if whole < block:
                kept[i, j] &= apart % int(block / whole) == 0
    return kept


def radial_blocks(grid, decay, block, sink):
    """[M, M] by the original's rule, one pair of frames at a time, the parts of blocks that lie in them cut out."""
    frame, first, count = grid.height * grid.width, grid.video_start, -(-grid.tokens // block)
    kept = np.eye(count, dtype=bool)
    text = np.unique(np.flatnonzero(places(grid)[:, 0] < 0) // block)
    kept[text] = kept[:, text] = True
    power = 1
    while power <= frame:
        power *= 2
    parts = []  # (frame, block, its places in the frame)
    for f in range(grid.frames):
        at = first + f * frame + np.arange(frame)
        parts += [(f, b, np.flatnonzero(at // block == b)) for b in np.unique(at // block)]
    for i, m, rows in parts:
        for j, n, columns in parts:
            apart = abs(i - j)
            whole = power / 2 ** (len(bin(apart)) - 2)
            if apart <= 1 or (sink and j == 0):
                kept[m, n] = True
            elif whole >= block or apart % int(block / whole) == 0:
                hit = (np.abs(rows[:, None] - columns) <= max(decay * whole, block)).sum(0) / block
                kept[m, n] |= (hit > 1 / 3).sum() > 0.6 * (hit > 0).sum()
    return kept


RAGGED = pytest.mark.parametrize(
    "grid, size",
    [
        (TokenGrid(9, 3, 5), 4),
        (TokenGrid(11, 5, 7), 8),
        (TokenGrid(10, 2, 3), 8),
        (TokenGrid(7, 4, 5, text=6, text_position="first"), 4),
        (TokenGrid(7, 4, 5, text=6, text_position="last"), 8),
    ],
    ids=str,
)


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0, 2.0])
@RAGGED
def test_radial_with_a_decay_keeps_the_blocks_that_the_original_keeps(grid, size, decay):
    found = Radial(decay=decay).pattern(grid, 0.8, size).mask.keep[0, 0].numpy()
    assert np.array_equal(found, radial_blocks(grid, decay, size, sink=grid.text == 0))


@pytest.mark.parametrize("decay", [0.0, 0.3, 2.0])
@RAGGED
def test_a_budget_reaches_the_block_pairs_that_hold_a_pair_of_a_band_by_decay(grid, size, decay):
    order = raster(grid)
    boxes = boxes_of(grid, order, size, flat=True)
    level = boxes.least(lambda rows: levels(boxes, rows, grid.frame, size, grid.text == 0))
    want = by_block(radial_pairs(grid, decay, size, sink=grid.text == 0), order, size)
    text = np.flatnonzero(places(grid)[:, 0] < 0) // size
    want[text] = want[:, text] = True
    assert np.array_equal(mask_at(grid, order, level, FLOOR + decay, size).mask.keep[0, 0].numpy(), want)


@pytest.mark.parametrize(
    "frames, decay, sink, density", [(18, 0.2, True, 0.287), (18, 1.0, True, 0.431), (30, 0.95, False, 0.275)]
)
def test_radial_densities_are_the_published_ones(frames, decay, sink, density):
    pattern = Radial(decay=decay, sink=sink).pattern(TokenGrid(frames, 48, 80), 0.8, 128)
    assert pattern.mask.density().item() == pytest.approx(density, abs=0.0006)
    assert f"decay {decay:g}; {density:.1%}" in pattern.notes[0]


@pytest.mark.parametrize("sparsity", [0.55, 0.7, 0.8, 0.9, 0.95])
@pytest.mark.parametrize(
    "grid", [TokenGrid(13, 10, 13), TokenGrid(12, 8, 16), TokenGrid(9, 10, 13, text=21, text_position="last")], ids=str
)
def test_near_frames_are_never_narrower_than_far_ones(grid, sparsity):
    pattern = Radial().pattern(grid, sparsity, 16)
    kept = pattern.mask.to_tokens(0, 0, range(grid.tokens))[grid.video_slice, grid.video_slice].float()
    pairs = torch.nn.functional.avg_pool2d(kept[None, None], grid.frame)[0, 0]  # by frame of query and of key
    inner = pairs if grid.text else pairs[1:, 1:]  # beside the first frame, which all see
    shares = [inner.diagonal(d).mean().item() for d in range(len(inner))]
    slack = 16 / grid.frame  # a block
    assert all(near >= far - slack for near, far in pairwise(shares)), shares
    if sparsity == 0.55:
        assert min(shares[:2]) > 0.99 and (grid.text or pairs[:, 0].min() > 0.99)
    if sparsity == 0.95:
        assert max(shares[2:]) < 0.1 < shares[0]
        assert "our own rule" in pattern.notes[0] and "our own" not in Radial().pattern(grid, 0.2, 16).notes[0]
        floor = float(pattern.notes[0].split("beyond ")[1].split()[0])
        least = Radial(decay=0).pattern(grid, 0.8, 16).mask.density().item()  # leaves out what is sparsely hit, too
        assert -0.01 <= 1 - least - floor < 0.15


def test_radial_bands_widen_with_the_budget_and_never_lose_a_pair():
    grid, before = TokenGrid(12, 8, 12), None
    for sparsity in (0.95, 0.8, 0.6, 0.4, 0.2, 0.0):
        kept = Radial().pattern(grid, sparsity, 16).mask.keep[0, 0]
        assert before is None or kept[before].all()
        before = kept


def test_radial_says_the_floor_of_the_pictures_pairs_whatever_text_there_is():
    grids = TokenGrid(16, 8, 8), TokenGrid(16, 8, 8, 512, "last")
    none, some = (Radial(sink=False).pattern(grid, 0.7, 16).notes[0].split(";")[1] for grid in grids)
    assert none == some and "no published mask" in none


# ---- attention tile


@pytest.mark.parametrize("frames, k", [(8, 4), (8, 3), (8, 2), (8, 1), (24, 12), (24, 4), (21, 5), (7, 0)])
def test_attention_tile_keeps_the_share_of_its_formula(frames, k):
    grid = TokenGrid(frames, 4, 8)
    pattern = AttentionTile(references=k).pattern(grid, 0.8, 16)  # two blocks a frame
    share = (2 * k * frames - k * k + frames - k) / frames**2
    assert pattern.mask.density().item() == pytest.approx(share, abs=1e-6)


def test_its_sparsities_are_the_published_ones_to_about_a_point():
    for k, percent in ((4, 17.60), (3, 29.88), (2, 45.47), (1, 64.38)):
        kept = np.isfinite(np.where(tile_ranks(8, k) <= 1, 0, np.inf)).mean()
        assert 100 * (1 - kept) == pytest.approx(percent, abs=1.5)


@pytest.mark.parametrize("text", [0, 5])
def test_a_frame_sees_itself_and_references_which_see_and_are_seen_by_all(text):
    grid = TokenGrid(7, 3, 5, text=text, text_position="last" if text else "none")
    pattern = AttentionTile(references=2).pattern(grid, 0.8, 4)
    frame = places(grid)[:, 0]
    reference = np.isin(frame, reference_frames(7, 2))
    kept = (frame[:, None] == frame) | reference[:, None] | reference
    want = by_block(kept, pattern.order, 4)
    of_text = np.flatnonzero(frame < 0) // 4
    want[of_text] = want[:, of_text] = True
    assert np.array_equal(pattern.mask.keep[0, 0].numpy(), want)


@pytest.mark.parametrize("frames", [2, 7, 8, 21])
def test_references_are_spread_evenly_and_more_of_them_only_add(frames):
    for k in range(1, frames + 1):
        chosen = reference_frames(frames, k)
        assert len(set(chosen)) == k and chosen[0] >= 0 and chosen[-1] < frames
        assert np.ptp(np.diff(chosen)) <= 1 if k > 1 else chosen == [frames // 2]
        rank = tile_ranks(frames, k)
        assert np.array_equal(rank, rank.T) and np.isfinite(rank).all() and (rank.diagonal() == 0).all()


# ---- todo


def todo_plan(grid, sparsity=0.75, block_size=8, **options):
    call = AttentionCall(0, 1, "", 0, 1, grid, sparsity, 0.25, torch.Generator(), block_size)
    empty = torch.empty(1, grid.tokens, 1, 4)
    return ToDo(**options).plan(empty, empty, empty, call)


def test_a_stride_of_two_picks_one_key_of_each_square_of_four():
    grid = TokenGrid(2, 6, 8)
    keys = todo_plan(grid, stride=2, pick="middle").keys
    f, r, c = places(grid)[keys.tokens.numpy()].T
    assert sorted(zip(f, r // 2, c // 2, strict=True)) == [
        (f, r, c) for f in range(2) for r in range(3) for c in range(4)
    ]
    assert keys.bias is None, "the same bias for every key changes nothing"


@pytest.mark.parametrize("where", ["first", "last"])
def test_a_key_counts_for_those_it_stands_for_and_text_for_itself(where):
    # Keys that are equal within each square: downsampling then loses nothing, if the counts are right.
    grid, heads = TokenGrid(2, 8, 8, text=8, text_position=where), 2
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, grid.tokens, heads, 16, generator=generator) for _ in range(3))
    f, r, c = places(grid).T
    square = torch.from_numpy(np.where(f < 0, -1, (f * 4 + r // 2) * 4 + c // 2))
    for x in (k, v):
        for s in range(32):
            x[:, square == s] = x[:, square == s][:, :1].clone()
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.25)
    for pick in PICKS:
        plans = (todo_plan(grid, stride=2, bias=b, pick=pick) for b in (True, False))
        counted, uncounted = (attend(q, k, v, plan, 0.25)[0] for plan in plans)
        torch.testing.assert_close(counted, dense.transpose(1, 2), rtol=1e-4, atol=1e-5)
    assert (uncounted - dense.transpose(1, 2))[:, grid.video_slice].abs().max() > 0.01
    torch.testing.assert_close(uncounted[:, grid.text_slice], dense.transpose(1, 2)[:, grid.text_slice])


def test_uneven_strides_pick_the_middle_of_each_stretch_and_bias_follows_the_counts():
    grid = TokenGrid(1, 5, 1)
    plan = todo_plan(grid, stride=[1, 2, 1], block_size=1, pick="middle")  # 5 rows, 2 picked: they stand for 3 and 2
    assert plan.keys.tokens.tolist() == [1, 3]
    assert plan.keys.bias.flatten().exp().tolist() == pytest.approx([3, 2])


def test_a_mean_stands_for_its_cell_and_text_for_itself():
    grid = TokenGrid(2, 5, 4, text=3, text_position="first")
    k, v = torch.randn(2, 2, grid.tokens, 3, 8, generator=torch.Generator().manual_seed(0))
    keys = todo_plan(grid, stride=2, block_size=4).keys
    found = keys.take(k, v)
    f, r, c = places(grid).T
    # Of 5 rows 2 are picked: a cell of three rows, one of two.
    cells = [
        (f == i) & (r >= 0) & ((r >= 3) == lower) & (c // 2 == j) for lower in (0, 1) for i in (0, 1) for j in (0, 1)
    ]
    for x, few in zip((k, v), found, strict=True):
        assert few.shape == (2, 8 + 3, 3, 8) and few.dtype == x.dtype
        want = torch.stack([x[:, torch.from_numpy(cell)].mean(1) for cell in cells], 1)
        torch.testing.assert_close(few[:, :8], want)
        assert torch.equal(few[:, 8:], x[:, :3])
    assert keys.bias.flatten()[:2].exp().tolist() == pytest.approx([6, 4])


def test_random_keys_are_drawn_anew_in_each_step_and_alike_in_both_branches():
    grid = TokenGrid(2, 6, 9, text=2, text_position="last")

    def drawn(seed):
        call = AttentionCall(0, 1, "", 0, 1, grid, 0.75, 0.25, torch.Generator().manual_seed(seed), 8)
        empty = torch.empty(1, grid.tokens, 1, 4)
        return ToDo(stride=(1, 2, 2), pick="random").plan(empty, empty, empty, call).keys.tokens

    one, two, again = drawn(1), drawn(2), drawn(1)
    assert torch.equal(one, again) and (one != two).float().mean() > 0.3
    f, r, c = places(grid)[one.numpy()].T
    columns = np.minimum(np.arange(9) * 4 // 9, 3)
    cells = sorted(zip(f[:-2], r[:-2] // 2, columns[c[:-2]], strict=True))
    assert cells == [(f, r, c) for f in range(2) for r in range(3) for c in range(4)] and one[-2:].tolist() == [
        108,
        109,
    ]
    seen = torch.stack([drawn(seed) for seed in range(60)]).unique()
    assert len(seen) == grid.tokens, "every token has its turn"


def test_the_density_of_fewer_keys_counts_text_queries_whole():
    grid = TokenGrid(2, 8, 8, text=8, text_position="last")
    plan = todo_plan(grid, stride=2)
    assert plan.density().item() == pytest.approx((128 * (32 + 8) + 8 * 136) / 136**2)


def test_rows_and_columns_are_thinned_alike_and_frames_stay():
    said = todo_plan(TokenGrid(21, 30, 52), sparsity=0.8, block_size=128).notes[0]
    frames, rows, columns = (int(n) for n in said.split("mean keys of ")[1].split(" ")[0].split("x"))
    assert frames == 21 and rows / 30 == pytest.approx(columns / 52, abs=0.04)
    assert rows * columns / (30 * 52) == pytest.approx(0.2, abs=0.011)
