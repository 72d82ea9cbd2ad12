"""Means of skipped blocks merged into an output: by the oracle, on every path."""

import pytest
import torch
from cases import inputs, random_mask, random_order, rms_error
from places import GPU, everywhere, no_sync
from test_clustered import random_clusters

from dittools.kernels import block_sparse_attention
from dittools.kernels.block_sparse.sample import draw_sample, draw_samples
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.residual.dispatch import Blocks, calibrate_at_centroid, residual_attention, summarise
from dittools.kernels.residual.naive import naive_residual_attention
from dittools.kernels.residual.sample import sampled_keys
from dittools.methods.base import Plan

BF16, FULL = torch.bfloat16, torch.float32


def plan_of(kind, tokens, lanes):
    order = random_order(*lanes, tokens)
    if kind == "clusters":
        return Plan(order, random_clusters(tokens, tokens, (5, 16), lanes), key_order=random_order(*lanes, tokens, 1))
    mask = random_mask(tokens, 64, 32 if kind == "small" else 64, *lanes, density=0.5)
    return Plan(None if kind == "raster" else order, mask)


def prepared(kind, tokens, dim, dtype, anchored, batches=1, lanes=(1, 2)):
    q, k, v = inputs(batches, tokens, 2, dim, dtype)
    plan = plan_of(kind, tokens, lanes)
    orders = {"order": plan.order} | ({} if plan.key_order is None else {"key_order": plan.key_order})
    out, lse = block_sparse_attention(q, k, v, plan.mask, **orders, return_lse=True, implementation="naive")
    blocks = Blocks.of(plan, q)
    means = summarise(k, v, blocks)
    if anchored:
        means = calibrate_at_centroid(q, k, v, blocks, means, dim**-0.5)
    return q, out, lse, blocks, means, dim**-0.5


def moved(x, device):
    if hasattr(x, "_fields"):
        return type(x)(*(moved(y, device) for y in x))
    return x.to(device) if isinstance(x, torch.Tensor) else x


@everywhere
@pytest.mark.parametrize("anchored", [False, True], ids=["plain", "anchored"])
@pytest.mark.parametrize(
    ("kind", "tokens", "dim", "dtype"),
    [
        ("raster", 150, 64, FULL),
        ("ordered", 200, 96, BF16),
        ("small", 200, 64, BF16),
        ("clusters", 150, 128, BF16),
        ("clusters", 110, 64, FULL),
        ("clusters", 140, 64, torch.float16),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_matches_the_oracle(place, kind, tokens, dim, dtype, anchored):
    case = prepared(kind, tokens, dim, dtype, anchored)
    found = residual_attention(*(moved(x, place[1]) for x in case), implementation=place[0])
    assert found.dtype == dtype and found.shape == case[1].shape
    wanted = naive_residual_attention(*case)
    assert rms_error(found.cpu(), wanted) < (1e-5 if dtype == FULL else 6e-3)
    assert rms_error(case[1], wanted) > 0.05


@everywhere
@pytest.mark.parametrize(
    ("kind", "tokens", "dim", "dtype", "per"),
    [
        ("raster", 150, 64, FULL, 8),
        ("ordered", 200, 96, BF16, 3),  # columns that fill no tile of keys
        ("clusters", 150, 128, BF16, 5),
        ("clusters", 110, 64, FULL, 70),  # more than most of them hold
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_several_keys_of_a_block_match_the_oracle(place, kind, tokens, dim, dtype, per):
    q, out, lse, blocks, _, scale = prepared(kind, tokens, dim, dtype, False)
    k, v = inputs(1, tokens, 2, dim, dtype)[1:]
    draws = torch.rand(blocks.keep.shape[2], per, generator=torch.Generator().manual_seed(2))
    keys = sampled_keys(k, v, blocks, draws)
    case = (q, out, lse, blocks, keys, scale)
    there = moved(sampled_keys(*(moved(x, place[1]) for x in (k, v, blocks, draws))), "cpu")
    assert all(torch.equal(x, y) for x, y in zip(there[:2], keys[:2], strict=True))
    found = residual_attention(*(moved(x, place[1]) for x in case), implementation=place[0])
    wanted = naive_residual_attention(*case)
    assert rms_error(found.cpu(), wanted) < (1e-5 if dtype == FULL else 6e-3)
    assert rms_error(out, wanted) > 0.05


@pytest.mark.parametrize("kind", ["raster", "ordered", "clusters"])
def test_every_key_of_a_block_is_drawn_as_often_as_any_other(kind):
    tokens, per, many = 110, 3, 600
    blocks = prepared(kind, tokens, 64, FULL, False)[3]
    k = torch.arange(tokens).float().view(1, -1, 1, 1).expand(1, -1, 2, 64)
    drawn = torch.Generator().manual_seed(0)
    times = torch.zeros(2, tokens)
    for _ in range(many):
        keys = sampled_keys(k, k, blocks, torch.rand(blocks.keep.shape[2], per, generator=drawn))
        filled = ~keys.bias[:, 0].isneginf().repeat_interleave(per, -1)
        times.scatter_add_(1, keys.keys[..., 0].long(), filled.float())
        assert torch.equal(blocks.columns.gather(1, keys.keys[..., 0].long())[filled], _owners(blocks, per)[filled])
    expected = (per / blocks.key_sizes.float()).gather(1, blocks.columns)
    assert ((times / many - expected).abs() < 5 * (expected / many).sqrt()).all()


def test_turns_are_uniform_each_and_their_mean_nears_that_of_all_keys_faster_than_free_draws():
    key, per, turns = Partition(16 * 40 + 5, 16), 2, 12
    values = torch.randn(key.length, generator=torch.Generator().manual_seed(0)).cumsum(0)  # neighbours are alike

    def total(sample):
        return float(values[sample.seen(3)].sum() * sample.weight)

    off = {"turns": [], "free": []}
    first_turn_or_later = torch.zeros(2, key.length)
    for seed in range(200):
        made = [draw_sample(key, per, seed, turn) for turn in range(turns)]
        free = [draw_sample(key, per, 1_000 * seed + turn) for turn in range(turns)]
        off["turns"].append(sum(map(total, made)) / turns - float(values.sum()))
        off["free"].append(sum(map(total, free)) / turns - float(values.sum()))
        for which, sample in enumerate((made[0], made[7])):
            first_turn_or_later[which, sample.seen(3)] += 1
    rms = {name: torch.tensor(found).square().mean().sqrt() for name, found in off.items()}
    assert rms["turns"] < 0.6 * rms["free"]
    expected = 200 * per / key.size
    assert (first_turn_or_later - expected).abs().max() < 5 * expected**0.5
    again = draw_sample(key, per, 3, 4)
    assert torch.equal(again.positions, draw_samples.__wrapped__(key, per, (3,), 4)[0].positions)
    together = draw_samples(key, per, (7, 3), 4)
    assert torch.equal(together[1].positions, again.positions) and torch.equal(together[1].counts, again.counts)
    assert not torch.equal(together[0].positions, again.positions)


@pytest.mark.parametrize("size,per", [(16, 2), (16, 1), (64, 32), (128, 2), (24, 4)])
@pytest.mark.parametrize("turn", [0, 5])
def test_draws_have_no_key_in_common_and_what_follows_the_last_key_is_none(size, per, turn):
    key = Partition(size * 6 + size // 3 + 1, size)
    sample = draw_sample(key, per, 1, turn, draws=16)
    draws, most = sample.positions.shape
    assert draws == len(sample.counts) == min(16, 1 << (size // per).bit_length() - 1)
    drawn = [sample.seen(row) for row in range(draws)]
    assert torch.equal(sample.seen(draws + 1), drawn[1 % draws])
    every = torch.cat(drawn)
    assert len(every.unique()) == len(every) and int(every.max()) < key.length
    stretch = torch.arange(most)
    for positions in drawn:
        number = stretch[: len(positions)]
        assert torch.equal((positions * per) // size, number) and torch.equal(positions // size, number // per)
    if draws == size // per:  # then they are all keys there are
        assert torch.equal(every.sort().values, torch.arange(key.length))
    assert len(draw_sample(key, per, 1, turn, draws=1).positions) == 1


@pytest.mark.parametrize("per", [3, 32, 0])
def test_a_number_of_keys_that_no_kernel_takes_is_refused(per):
    with pytest.raises(ValueError, match=r"keys drawn of a block of 16 must be one of \[1, 2, 4, 8, 16\]"):
        draw_sample(Partition(100, 16), per, 0)


def _owners(blocks, per):
    return torch.arange(blocks.keep.shape[2]).repeat_interleave(per).expand(2, -1)


@everywhere
def test_batches_have_blocks_of_their_own(place):
    for lanes in ((1, 1), (2, 2)):
        case = prepared("clusters", 120, 64, FULL, True, batches=2, lanes=lanes)
        found = residual_attention(*(moved(x, place[1]) for x in case), implementation=place[0])
        assert rms_error(found.cpu(), naive_residual_attention(*case)) < 1e-5


@everywhere
def test_rows_that_skip_nothing_or_keep_nothing(place):
    q, out, lse, blocks, means, scale = prepared("raster", 150, 64, FULL, False)
    blocks.keep[:, 0], blocks.keep[:, 1] = True, False
    lse[..., 64:128] = -torch.inf
    case = (q, out, lse, blocks, means, scale)
    found = residual_attention(*(moved(x, place[1]) for x in case), implementation=place[0]).cpu()
    assert torch.equal(found[:, :64], out[:, :64])
    assert rms_error(found, naive_residual_attention(*case)) < 1e-5


@everywhere
@pytest.mark.parametrize(
    ("kind", "dim", "dtype"), [("ordered", 64, FULL), ("clusters", 64, FULL), ("clusters", 96, BF16)], ids=str
)
def test_anchors_are_where_mass_and_output_of_the_skipped_are_exact(place, kind, dim, dtype):
    implementation, device = place
    q, k, v = inputs(2, 90, 2, dim, dtype)
    plan = plan_of(kind, 90, (1, 2))
    blocks = Blocks.of(plan, q)
    blocks.keep[0, 1], scale = True, 0.2  # a query block that skips nothing
    means = summarise(k, v, blocks)
    found = calibrate_at_centroid(
        *(moved(x, device) for x in (q, k, v, blocks, means)), scale, implementation=implementation
    )  # fmt: skip
    found = moved(found, "cpu")
    for lane in range(4):
        b, h = divmod(lane, 2)
        for m in range(blocks.keep.shape[1]):
            mine = blocks.rows[lane] == m
            skip = ~blocks.keep[lane, m][blocks.columns[lane]]
            if not mine.any() or not skip.any():
                assert found.shift[lane].isfinite().all()
                continue
            a = q[b, mine, h].float().mean(0).to(dtype).float() * scale
            logits = k[b, skip, h].float() @ a
            own = found.bias[lane, m].masked_fill(blocks.keep[lane, m], -torch.inf) + means.keys[lane] @ a
            near = {"atol": 1e-4, "rtol": 1e-4} if dtype == FULL else {"atol": 2e-2, "rtol": 2e-2}
            torch.testing.assert_close(own.logsumexp(0), logits.logsumexp(0), **near)
            output = own.softmax(0) @ means.values[lane] + found.shift[lane, m]
            torch.testing.assert_close(output, logits.softmax(0) @ v[b, skip, h].float(), **near)


@everywhere
def test_anchors_make_the_mean_query_exact(place):
    implementation, device = place
    q, k, v = inputs(1, 192, 2, 64)
    q = q[:, ::64].repeat_interleave(64, 1) * 2
    mask = random_mask(192, 64, 32, 1, 2, density=0.5)
    out, lse = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="naive")
    q, k, v, out, lse = (x.to(device) for x in (q, k, v, out, lse))
    blocks = Blocks.of(Plan(None, mask.to(device)), q)
    means = calibrate_at_centroid(q, k, v, blocks, summarise(k, v, blocks), 0.125, implementation=implementation)
    found = residual_attention(q, out, lse, blocks, means, 0.125, implementation=implementation)
    dense = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    assert rms_error(found, dense) < 1e-5


@everywhere
def test_tiles_of_many_query_blocks_and_a_giant_one(place):
    q, k, v = inputs(1, 300, 2, 64, BF16)
    mask = random_clusters(300, 300, (9, 12), (1, 2))
    mask.query.run_sizes[0, 0] = torch.tensor([1, 0, 2, 1, 0, 90, 6, 200, 0], dtype=torch.int32)
    mask.key.run_sizes[0, 1] = torch.tensor([0, 1, 270, 0, 9, 0, 0, 20, 0, 0, 0, 0], dtype=torch.int32)
    plan = Plan(random_order(1, 2, 300), mask, key_order=random_order(1, 2, 300, 1))
    orders = {"order": plan.order, "key_order": plan.key_order}
    out, lse = block_sparse_attention(q, k, v, mask, **orders, return_lse=True, implementation="naive")
    there = moved(Blocks.of(plan, q), place[1])
    q, k, v, out, lse = (x.to(place[1]) for x in (q, k, v, out, lse))
    means = summarise(k, v, there, implementation=place[0])
    means = calibrate_at_centroid(q, k, v, there, means, 0.125, implementation=place[0])
    found = residual_attention(q, out, lse, there, means, 0.125, implementation=place[0])
    wanted = naive_residual_attention(*(moved(x, "cpu") for x in (q, out, lse, there, means)), 0.125)
    assert rms_error(found.cpu(), wanted) < 6e-3


@everywhere
def test_splits_of_the_keys_add_up(place):
    q, k, v = inputs(1, 200, 1, 64)
    plan = Plan(None, random_clusters(200, 200, (3, 40), density=0.5))
    blocks = Blocks.of(plan, q)
    portable = calibrate_at_centroid(q, k, v, blocks, summarise(k, v, blocks), 0.3, implementation="portable")
    q, k, v, blocks = (moved(x, place[1]) for x in (q, k, v, blocks))
    found = calibrate_at_centroid(q, k, v, blocks, summarise(k, v, blocks), 0.3, implementation=place[0])
    found = moved(found, "cpu")
    found = found._replace(bias=found.bias.masked_fill(plan.mask.keep[0], -torch.inf))  # that of kept blocks is unused
    torch.testing.assert_close(found, portable, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", [pytest.param(x, marks=GPU) for x in ("clusters", "ordered")])
def test_long_sequences_on_the_gpu_without_a_host_sync(kind):
    tokens = 32_760
    q, k, v = inputs(1, tokens, 4, 128, BF16, device="cuda")
    order, key_order = (random_order(1, 4, tokens, seed, "cuda") for seed in (0, 1))
    if kind == "clusters":
        plan = Plan(order, random_clusters(tokens, tokens, (130, 430), (1, 4), 0.2).to("cuda"), key_order=key_order)
    else:
        plan = Plan(order, random_mask(tokens, 128, 128, 1, 4, density=0.2, device="cuda"))
    orders = {"order": plan.order} | ({} if plan.key_order is None else {"key_order": plan.key_order})
    out, lse = block_sparse_attention(q, k, v, plan.mask, **orders, return_lse=True)

    def correct(implementation=None):
        blocks = Blocks.of(plan, q)
        means = summarise(k, v, blocks, implementation=implementation)
        means = calibrate_at_centroid(q, k, v, blocks, means, 0.3, implementation=implementation)
        return residual_attention(q, out, lse, blocks, means, 0.3, implementation=implementation)

    correct()
    with no_sync():
        found = correct()
    assert rms_error(found, correct("portable")) < 1e-2


@everywhere
@pytest.mark.parametrize("dtype", [BF16, torch.float16], ids=str)
def test_what_is_skipped_may_outweigh_what_is_computed_by_far(place, dtype):
    q, out, lse, blocks, means, scale = prepared("clusters", 150, 64, dtype, True)
    lse[:, 0] -= 60
    lse[:, 1, :70] -= 200
    case = (q, out, lse, blocks, means, scale)
    found = residual_attention(*(moved(x, place[1]) for x in case), implementation=place[0])
    assert rms_error(found.cpu(), naive_residual_attention(*case)) < 6e-3
