"""The spatial and temporal masks, against what their definition says of every pair of tokens."""

import numpy as np
import pytest
import torch

from dittools.methods import AttentionCall
from dittools.methods.base import Plan
from dittools.methods.svg import SVG
from dittools.orders.raster import raster
from dittools.orders.token_major import token_major
from dittools.selection.geometric import Band, band_pattern, forced
from dittools.tokens import TokenGrid
from tests.methods.scenes import shares

GRIDS = {
    "5x7x9": TokenGrid(5, 7, 9),
    "3x5x11": TokenGrid(3, 5, 11),
    "4x3x3": TokenGrid(4, 3, 3),
    "9x8x8": TokenGrid(9, 8, 8),
    "text first": TokenGrid(5, 6, 7, text=11, text_position="first"),
    "text last": TokenGrid(5, 6, 7, text=11, text_position="last"),
}


def patterns(grid, sparsity, block_size):
    call = AttentionCall(0, 1, "", 0, 1, grid, sparsity, 1.0, torch.Generator(), block_size)
    return dict(zip(("spatial", "temporal"), SVG().patterns(call, torch.device("cpu")), strict=True))


def kept_pairs(pattern, grid):
    """[S, S] bool in token coordinates, from the order and the block mask alone."""
    position = np.argsort(pattern.order.numpy())
    block = position // pattern.mask.query.size
    return pattern.mask.keep[0, 0].numpy()[block][:, block]


def geometry(grid):
    """(frame, patch) of every token, -1 for text, by counting."""
    frame, patch = np.full(grid.tokens, -1), np.full(grid.tokens, -1)
    token = grid.text if grid.text_position == "first" else 0
    for f in range(grid.frames):
        for p in range(grid.height * grid.width):
            frame[token], patch[token] = f, p
            token += 1
    return frame, patch


def distances(kind, grid):
    """[S, S] distance of every pair of video tokens in original coordinates."""
    frame, patch = geometry(grid)
    at = frame * grid.frame + patch if kind == "spatial" else patch
    return np.abs(at[:, None] - at)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize("name", GRIDS)
def test_the_mask_is_a_band_in_original_coordinates(name, kind, sparsity):
    grid, size = GRIDS[name], 8
    pattern = patterns(grid, sparsity, size)[kind]
    kept, apart = kept_pairs(pattern, grid), distances(kind, grid)
    frame, _ = geometry(grid)
    position = np.argsort(pattern.order.numpy())
    block = position // size
    for_text = np.isin(block, block[frame < 0])  # tokens that share a block with text
    sink = np.isin(block, block[frame == 0])
    free = ~for_text[:, None] & ~for_text & ~sink & (block[:, None] != block)
    width = apart[free & ~kept].min(initial=10**9)
    # Every free block pair is kept for a token pair that is at most as far apart as the nearest pair dropped.
    for m in range(pattern.mask.query.count):
        for n in range(pattern.mask.key.count):
            pair = np.ix_(block == m, block == n)
            if free[pair].all() and kept[pair].any():
                assert kept[pair].all()
                assert apart[pair].min() <= width


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize("name", GRIDS)
def test_the_band_is_as_wide_for_first_frame_queries_and_symmetric(name, kind):
    grid = GRIDS[name]
    size = 2
    pattern = patterns(grid, 0.4, size)[kind]
    kept, apart = kept_pairs(pattern, grid), distances(kind, grid)
    frame, _ = geometry(grid)
    video = (frame[:, None] >= 0) & (frame >= 0)
    width = apart[video & ~kept].min()
    assert width >= 2
    assert kept[video & (apart < width)].all()
    one_way = kept & ~kept.T & (frame != 0) & (frame[:, None] != 0) & video
    # Only the last diagonal may be cut in two, and a block that the first frame shares is kept as a key
    # alone.
    block = np.argsort(pattern.order.numpy()) // size
    shared = np.isin(block, block[frame == 0])
    assert (one_way & ~shared & ~shared[:, None]).mean() < 0.02


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize("name", GRIDS)
def test_every_query_sees_the_whole_first_frame_when_the_budget_allows(name, kind):
    grid = GRIDS[name]
    # At this sparsity the first frame and the text take less than half of what is kept.
    pattern = patterns(grid, 0.1, 4)[kind]
    assert pattern.notes == ()
    frame, _ = geometry(grid)
    assert kept_pairs(pattern, grid)[:, frame == 0].all()


def test_a_first_frame_too_large_for_the_budget_is_kept_near_each_query_and_a_note_says_so():
    grid = GRIDS["9x8x8"]
    for kind, pattern in patterns(grid, 0.85, 8).items():
        assert "first frame" in pattern.notes[0], kind
        kept = kept_pairs(pattern, grid)
        frame, patch = geometry(grid)
        first = kept[:, frame == 0]
        assert 0 < first.mean() < 1
        # The first-frame token at the query's own place is there for every query.
        assert all(kept[q, patch[q]] for q in range(grid.tokens))


@pytest.mark.parametrize("kind", ["spatial", "temporal"])
@pytest.mark.parametrize("name", ["text first", "text last"])
def test_text_rows_and_columns_are_always_kept(name, kind):
    grid = GRIDS[name]
    for sparsity in (0.3, 0.95):
        kept = kept_pairs(patterns(grid, sparsity, 8)[kind], grid)
        frame, _ = geometry(grid)
        assert kept[frame < 0].all() and kept[:, frame < 0].all()


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7, 0.8, 0.9])
@pytest.mark.parametrize(
    "grid, size",
    [
        (TokenGrid(5, 7, 9), 16),
        (TokenGrid(9, 16, 16), 64),
        (TokenGrid(3, 5, 11), 8),
        (TokenGrid(7, 13, 11), 64),
        (TokenGrid(21, 30, 52), 128),
        (TokenGrid(11, 30, 45, text=226, text_position="first"), 128),
        (TokenGrid(33, 30, 45, text=256, text_position="last"), 128),
    ],
    ids=str,
)
def test_the_asked_sparsity_is_met_counting_every_pair(grid, size, sparsity):
    for kind, pattern in patterns(grid, sparsity, size).items():
        kept = shares(Plan(pattern.order[None, None], pattern.mask), grid).item()
        assert abs(1 - kept - sparsity) <= 0.01, kind


def test_sparsity_zero_keeps_everything():
    for pattern in patterns(TokenGrid(5, 7, 9), 0.0, 16).values():
        assert pattern.mask.keep.all()


def test_an_impossible_sparsity_keeps_the_diagonal():
    for pattern in patterns(TokenGrid(5, 7, 9), 0.99, 64).values():
        assert torch.equal(pattern.mask.keep[0, 0], torch.eye(5, dtype=torch.bool))


@pytest.mark.parametrize("name", GRIDS)
def test_token_major_puts_the_first_frame_first_and_then_all_frames_of_a_patch_together(name):
    grid = GRIDS[name]
    order = token_major(grid).numpy()
    assert sorted(order) == list(range(grid.tokens))
    frame, patch = geometry(grid)
    video = order[grid.video_slice]
    assert (frame[video[: grid.frame]] == 0).all() and (np.diff(patch[video[: grid.frame]]) == 1).all()
    later = video[grid.frame :].reshape(grid.frame, grid.frames - 1)
    for p in range(grid.frame):
        assert (patch[later[p]] == p).all() and frame[later[p]].tolist() == list(range(1, grid.frames))
    text = np.flatnonzero(frame < 0)
    assert (order[text] == text).all()


def test_row_masks_are_rows_of_the_mask_that_runs():
    grid = GRIDS["text last"]
    rows = torch.tensor([0, 3, 100, 209, 215])
    for pattern in patterns(grid, 0.7, 8).values():
        assert (pattern.rows(rows).numpy() == kept_pairs(pattern, grid)[rows.numpy()]).all()


@pytest.mark.parametrize("name", GRIDS)
def test_a_band_is_ranked_once_for_every_budget(name):
    grid = GRIDS[name]
    near = torch.arange(grid.video) % grid.frame
    band = Band(grid, token_major(grid), near, 8, forced(grid, token_major(grid), 8))
    for width in (0.3, 0.1, 0.65):
        alone = band_pattern(grid, token_major(grid), near, sparsity=1 - width, block_size=8, sink=False)
        assert torch.equal(torch.from_numpy(band.keep(width)), alone.mask.keep[0, 0])


def test_a_diagonal_that_the_budget_cuts_is_thinned_out_evenly_along_the_sequence():
    grid = TokenGrid(10, 8, 8)
    index = torch.arange(grid.video)
    cut = band_pattern(grid, raster(grid), index, sparsity=0.93, block_size=8, sink=False).mask.keep[0, 0]
    shares = {d: cut.diagonal(d).float() for d in range(8)}
    partial = [d for d, kept in shares.items() if 0 < kept.mean() < 1]
    assert len(partial) == 1 and torch.equal(cut, cut.T)
    kept = shares[partial[0]]
    expected = kept.mean() * torch.arange(1, len(kept) + 1)
    assert (kept.cumsum(0) - expected).abs().max() < 3
