"""Scores of blocks against their definitions, written out."""

import pytest
import torch

from dittools.kernels.antidiagonal import dispatch as antidiagonal
from dittools.kernels.block_mass.naive import naive_block_mass
from dittools.selection import in_order
from dittools.selection.measured import block_mass, row_lse, sampled_positions
from dittools.selection.ordered_blocks import cut_into_blocks
from dittools.selection.pooled import block_softmax, centred, mean_logits, pool, pooled_logits
from dittools.selection.self_similarity import means_and_similarity
from dittools.tokens import TokenGrid

GRIDS = [TokenGrid(3, 6, 7), TokenGrid(2, 5, 9, text=11, text_position="first")]
grids = pytest.mark.parametrize("grid", GRIDS, ids=str)
orders = pytest.mark.parametrize("order", ["raster", "patches", "curve"])
SCALE = 0.3


def drawn(grid, batches=2, heads=3, dim=8):
    made = torch.Generator().manual_seed(1)
    return (torch.randn(batches, grid.tokens, heads, dim, generator=made) * 2 for _ in range(2))


def in_positions(x, blocks):
    return x if blocks.order is None else x[:, blocks.order[0, 0].long()]


def blocks_of(x, blocks):
    """The tokens of each block, in the order: M tensors ``[B, n, H, D]``."""
    return in_positions(x, blocks).split(blocks.partition.size, 1)


@orders
@grids
@pytest.mark.parametrize("how", ["mean", "max"])
def test_pooled_logits_are_products_of_pooled_blocks(grid, order, how):
    q, k = drawn(grid)
    blocks = cut_into_blocks(grid, 16, order)
    reduce = torch.amax if how == "max" else torch.mean
    queries, keys = ([reduce(b, 1) for b in blocks_of(x, blocks)] for x in (q, k))  # [B, H, D] each
    want = torch.stack([torch.stack([(a * b).sum(-1) * SCALE for b in keys], -1) for a in queries], -2)
    torch.testing.assert_close(pooled_logits(q, k, blocks, SCALE, how=how), want, rtol=1e-4, atol=1e-4)


def test_centred_keys_shift_every_row_by_one_number():
    q, k = drawn(GRIDS[0])
    blocks = cut_into_blocks(GRIDS[0], 16, "raster")
    queries, keys = pool(q, blocks), pool(k + 5, blocks)
    torch.testing.assert_close(centred(keys, blocks), keys - (k + 5).mean(1)[:, :, None])
    shift = mean_logits(queries, keys, SCALE) - mean_logits(queries, centred(keys, blocks), SCALE)
    assert (shift - shift[..., :1]).abs().max() < 1e-3 < shift.abs().max()


def test_softmax_counts_the_ragged_block_by_its_tokens_and_gives_text_nothing():
    grid = GRIDS[1]
    blocks = cut_into_blocks(grid, 16, "raster")  # 101 tokens: text in block 0, 5 tokens in the last
    logits = torch.zeros(1, 1, 7, 7)
    share = block_softmax(logits, blocks)[0, 0, 0]
    torch.testing.assert_close(share, torch.tensor([0, 16, 16, 16, 16, 16, 5]) / 85)
    skip = torch.zeros(1, 1, 7, dtype=torch.bool)
    skip[..., 2] = True
    torch.testing.assert_close(block_softmax(logits, blocks, skip)[0, 0, 3, 6], torch.tensor(5 / 69))
    assert block_softmax(logits, blocks, torch.ones_like(skip)).isfinite().all()


@orders
@grids
def test_measured_mass_is_the_mean_softmax_in_each_block(grid, order):
    q, k = drawn(grid)
    blocks = cut_into_blocks(grid, 16, order)
    a, b = (in_positions(x, blocks) for x in (q, k))
    want = naive_block_mass(a, b, blocks.partition, blocks.partition, scale=SCALE) / blocks.sizes[:, None]
    torch.testing.assert_close(block_mass(q, k, blocks, SCALE), want, rtol=1e-4, atol=1e-5)
    lse = row_lse(q, k, blocks, SCALE)
    torch.testing.assert_close(lse, torch.einsum("bqhd,bkhd->bhqk", a, b).mul(SCALE).logsumexp(-1))
    torch.testing.assert_close(block_mass(q, k, blocks, SCALE, lse=lse), want, rtol=1e-4, atol=1e-5)


@orders
def test_sampled_mass_is_the_mean_over_the_sampled_queries_alone(order):
    grid = GRIDS[1]
    q, k = drawn(grid)
    blocks = cut_into_blocks(grid, 16, order)
    a, b = (in_positions(x, blocks) for x in (q, k))
    weights = torch.einsum("bqhd,bkhd->bhqk", a, b).mul(SCALE).softmax(-1)
    picked = sampled_positions(blocks, 4).view(-1, 4)
    assert (picked // 16 == torch.arange(7)[:, None]).all() and picked.max() < grid.tokens
    assert (picked[:-1].diff(dim=1) == 4).all()
    of_rows = torch.stack([weights[:, :, rows].mean(2) for rows in picked], 2)
    want = torch.stack([part.sum(-1) for part in of_rows.split(16, -1)], -1)
    torch.testing.assert_close(block_mass(q, k, blocks, SCALE, rows=4), want, rtol=1e-4, atol=1e-5)


@orders
@grids
@pytest.mark.parametrize("stride", [4, 8])
def test_antidiagonal_scores_are_those_of_the_definition(grid, order, stride):
    q, k = drawn(grid, batches=1, heads=2)
    blocks = cut_into_blocks(grid, 16, order)
    a, b = (in_positions(x, blocks) for x in (q, k))
    # Past the end the last token stands in.
    at = torch.arange(-(-grid.tokens // stride) * stride).clamp_max(grid.tokens - 1)
    a, b = a[:, at], b[:, at]
    tiles, per_block = len(at) // stride, 16 // stride
    for h in range(2):
        score = torch.zeros(tiles, tiles)
        for i in range(tiles):
            for j in range(tiles):
                for r in range(stride):
                    score[i, j] += a[0, stride * i + stride - 1 - r, h] @ b[0, stride * j + r, h]
        share = (score * SCALE / stride).softmax(-1)
        want = torch.stack([p.sum(-1) for p in share.split(per_block, 1)], -1)
        want = torch.stack([p.mean(0) for p in want.split(per_block, 0)], 0)
        found = antidiagonal.measure_antidiagonals(q, k, blocks.partition, stride, scale=SCALE, order=blocks.order)
        found = found[0, h]
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.sum(-1), torch.ones(len(want)))


@orders
@grids
def test_self_similarity_is_the_mean_cosine_of_all_pairs_in_a_block(grid, order):
    q, _ = drawn(grid)
    q = q + 1
    blocks = cut_into_blocks(grid, 16, order)
    unit = [torch.nn.functional.normalize(b, dim=-1) for b in blocks_of(q, blocks)]
    want = torch.stack([torch.einsum("bihd,bjhd->bhij", u, u).mean((-1, -2)) for u in unit], -1)
    means, similarity = means_and_similarity(q, blocks)
    torch.testing.assert_close(similarity, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means, pool(q, blocks))
    for found, want in zip(
        means_and_similarity(q, blocks, centre=True), means_and_similarity(q - q.mean(1, True), blocks), strict=True
    ):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


@orders
def test_chunks_of_heads_and_rows_change_nothing(order, monkeypatch):
    q, k = drawn(GRIDS[0])
    blocks = cut_into_blocks(GRIDS[0], 16, order)

    def everything():
        yield pool(q, blocks)
        yield pool(q, blocks, "max")
        yield means_and_similarity(q, blocks)[1]
        yield torch.cat([x.flatten() for x in means_and_similarity(q, blocks, centre=True)])
        yield antidiagonal.measure_antidiagonals(q, k, blocks.partition, 4, scale=SCALE, order=blocks.order)
        yield block_mass(q, k, blocks, SCALE, lse=row_lse(q, k, blocks, SCALE))

    whole = list(everything())
    monkeypatch.setattr(in_order, "CHUNK_BYTES", 1)
    monkeypatch.setattr(antidiagonal, "CHUNK_BYTES", 1)
    for found, want in zip(everything(), whole, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-6)
