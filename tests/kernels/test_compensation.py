"""The error that means of runs leave: by the oracle, on every path."""

from itertools import pairwise

import pytest
import torch
from cases import inputs, random_order
from places import GPU, everywhere, no_sync

from dittools.kernels.residual.error import block_approximation_error
from dittools.kernels.residual.naive import naive_block_approximation_error
from dittools.kernels.segment_mean.dispatch import segment_means
from dittools.kernels.segment_mean.tiles import cut_runs

BF16, FULL = torch.bfloat16, torch.float32
SCALE = 0.125


def offsets_of(*rows):
    return torch.tensor(rows, dtype=torch.int32)


def case(tokens, dim, dtype, batches=1, heads=2, queries=9, loud=1.0):
    """Queries, k and v; the queries in numbers that dtype holds, and keys and values that have a part in common."""
    q, k, v = inputs(batches, tokens, heads, dim, torch.float32)
    common = torch.randn(dim, generator=torch.Generator().manual_seed(5))
    q = q.repeat(1, queries // tokens + 1, 1, 1)[:, :queries]
    return (q.transpose(1, 2) * loud).to(dtype).float(), (k + common).to(dtype), (v + common).to(dtype)


def check(place, queries, k, v, order, offsets, scale=SCALE):
    implementation, device = place
    there = (x if x is None else x.to(device) for x in (queries, k, v, order, offsets))
    found = block_approximation_error(*there, scale, implementation=implementation).cpu()
    wanted = naive_block_approximation_error(queries, k, v, order, offsets, scale)
    assert found.dtype == torch.float32 and found.shape == wanted.shape and (found >= 0).all()
    sizes = offsets.diff(dim=-1).expand(*found.shape[:2], -1)
    assert (found.transpose(-1, -2)[sizes == 0] == 0).all()
    torch.testing.assert_close(found.double(), wanted, rtol=2e-4, atol=2e-6 * wanted.max().item())
    ranked = [x.argsort(-1, descending=True)[..., 0] for x in (found, wanted)]
    assert torch.equal(*ranked)


RUNS = {
    "even": (0, 64, 128, 192, 200),
    "ragged": (0, 0, 3, 3, 50, 51, 130, 199, 200, 200),
    "one": (0, 200),
    "giant": (0, 0, 2, 190, 190, 200),
    "text first": (0, 40, 60, 101, 150, 200),
}


@everywhere
@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize(("dim", "dtype"), [(64, FULL), (128, BF16), (96, BF16)], ids=str)
def test_matches_the_oracle(place, runs, dim, dtype):
    check(place, *case(200, dim, dtype), random_order(1, 2, 200), offsets_of(runs)[None])


@everywhere
@pytest.mark.parametrize("queries", [1, 64, 70])
def test_any_number_of_queries(place, queries):
    check(place, *case(90, 64, BF16, queries=queries), None, offsets_of((0, 20, 70, 90))[None])


@everywhere
def test_batches_and_heads_have_runs_and_orders_of_their_own(place):
    rows = offsets_of((0, 7, 90, 150), (0, 0, 75, 150), (0, 150, 150, 150), (0, 64, 128, 150))
    check(place, *case(150, 64, BF16, batches=2), random_order(2, 2, 150), rows.view(2, 2, 4))
    check(place, *case(150, 64, BF16, batches=2), random_order(1, 2, 150), rows[:2].view(2, 1, 4))
    check(place, *case(150, 64, BF16, batches=2), random_order(2, 1, 150), rows[:1].view(1, 1, 4))


@everywhere
def test_runs_are_split_among_programs_and_each_is_counted_once(place):
    ends = torch.arange(0, 301, 6, dtype=torch.int32)
    ends[10:20] = ends[10]
    check(place, *case(300, 64, BF16, heads=1, queries=5), random_order(1, 1, 300), ends[None, None])


@everywhere
def test_logits_far_apart_stay_finite(place):
    implementation, device = place
    queries, k, v = (x.to(device) for x in case(200, 64, BF16, loud=200))
    offsets = offsets_of(RUNS["ragged"])[None].to(device)
    found = block_approximation_error(queries, k, v, None, offsets, 1.0, implementation=implementation)
    assert found.isfinite().all() and (found >= 0).all()


@everywhere
def test_runs_of_equal_keys_and_values_leave_no_error(place):
    implementation, device = place
    queries, k, v = case(192, 64, BF16)
    k, v = (x[:, ::64].repeat_interleave(64, 1).to(device) for x in (k, v))
    offsets = offsets_of((0, 64, 128, 192))[None].to(device)
    found = block_approximation_error(queries.to(device), k, v, None, offsets, SCALE, implementation=implementation)
    assert found.max() < 1e-5 * v.float().square().sum(-1).max() / 64


@everywhere
def test_any_strides(place):
    queries, k, v = case(130, 64, BF16)
    packed = torch.stack((v, k), 2).unbind(2)
    heads_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    order, offsets = random_order(1, 2, 130), offsets_of((0, 60, 130))[None]
    check(place, queries, packed[1], packed[0], order, offsets)
    check(place, queries.transpose(1, 2).contiguous().transpose(1, 2), heads_first, v, order, offsets)


def test_tiles_cover_every_run_once_and_in_order():
    offsets = offsets_of((0, 0, 130, 131, 131, 200), (0, 64, 64, 64, 192, 200)).view(1, 2, 6)
    tiles = cut_runs(offsets, 200, 64)
    assert tiles.table.shape == (1, 2, 5 + 200 // 64, 4) and tiles.counts.tolist() == [[6, 4]]
    for h in range(2):
        rows = tiles.table[0, h].tolist()
        live, rest = rows[: tiles.counts[0, h]], rows[tiles.counts[0, h] :]
        ends = offsets[0, h].tolist()
        runs = enumerate(pairwise(ends))
        wanted = [(i, min(i + 64, stop), n) for n, (start, stop) in runs for i in range(start, stop, 64)]
        assert [tuple(row[:3]) for row in live] == wanted
        assert all(live[row[3]][2] == row[2] and (row[3] == 0 or live[row[3] - 1][2] < row[2]) for row in live)
        assert all(row[0] == row[1] for row in rest)


def test_a_head_dim_that_the_kernel_lacks_is_named():
    queries, k, v = case(20, 32, FULL)
    with pytest.raises(ValueError, match=r"implementation 'triton' cannot run"):
        block_approximation_error(queries, k, v, None, offsets_of((0, 20))[None], SCALE, implementation="triton")


@pytest.mark.parametrize("tokens", [pytest.param(32_760, marks=GPU)])
def test_long_sequences_on_the_gpu_without_a_host_sync(tokens):
    q, k, v = inputs(1, tokens, 4, 128, BF16, device="cuda")
    order = random_order(1, 4, tokens, device="cuda")
    offsets = offsets_of((*range(0, 30_001, 75), 31_000, tokens))[None].cuda()
    queries = segment_means(q, order, offsets[..., ::4].contiguous()).bfloat16().float()
    block_approximation_error(queries, k, v, order, offsets, 0.3)
    with no_sync():
        found = block_approximation_error(queries, k, v, order, offsets, 0.3)
    portable = block_approximation_error(queries, k, v, order, offsets, 0.3, implementation="portable")
    torch.testing.assert_close(found, portable, rtol=1e-3, atol=1e-5 * portable.max().item())
