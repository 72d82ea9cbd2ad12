"""Plans cut to some of their queries: the same output for these, however the order scatters them."""

from dataclasses import replace

import pytest
import torch

from dittools.attention import attend
from dittools.dense_rows import DenseRows
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition
from dittools.methods.base import Plan
from dittools.query_rows import QueryRows

B, S, H, D, SIZE = 2, 150, 3, 16, 16


def tensors():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, S, H, D, generator=generator) for _ in "qkv"]


def keep(*shape):
    generator = torch.Generator().manual_seed(1)
    found = torch.rand(*shape, generator=generator) < 0.06
    found[..., 0] = True
    return found


def orders(*lanes):
    generator = torch.Generator().manual_seed(2)
    found = [torch.randperm(S, generator=generator) for _ in range(lanes[0] * lanes[1])]
    return torch.stack(found).view(*lanes, S).int()


def sizes(*lanes):
    generator = torch.Generator().manual_seed(3)
    cuts = torch.randint(0, S + 1, (*lanes, 6), generator=generator).sort(-1).values
    edges = torch.nn.functional.pad(torch.nn.functional.pad(cuts, (1, 0)), (0, 1), value=S)
    return ClusterPartition(S, edges.diff(dim=-1).int())


def blocks(*lanes):
    even = Partition(S, SIZE)
    return BlockMask(keep(*lanes, even.count, even.count), even, even)


def clusters():
    return ClusterMask(keep(B, H, 7, 7), sizes(B, H), sizes(1, H))


PLANS = {
    "raster": lambda: Plan(None, blocks(1, 1)),
    "by-head": lambda: Plan(None, blocks(B, H)),
    "order": lambda: Plan(orders(1, 1), blocks(1, H)),
    "orders": lambda: Plan(orders(B, H), blocks(1, 1)),
    "near-raster": lambda: Plan(torch.arange(S).roll(3).int()[None, None], blocks(1, 1)),
    "clusters": lambda: Plan(orders(B, H), clusters(), key_order=orders(1, H).flip(-1)),
    "text-rows": lambda: Plan(
        orders(1, 1), blocks(1, H), rows=DenseRows(torch.arange(5), torch.tensor([0, 2]), S, SIZE)
    ),
}
RUNS = {"half": [(75, 75)], "aligned": [(32, 64)], "two": [(2, 3), (80, 33)]}


def rows_of(runs):
    flags = torch.zeros(S, dtype=torch.bool)
    for first, count in runs:
        flags[first : first + count] = True
    return QueryRows(flags, torch.device("cpu"))


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("name", PLANS)
def test_rows_of_a_rank_are_those_of_the_whole_call(name, runs):
    q, k, v = tensors()
    plan, rows = PLANS[name](), rows_of(RUNS[runs])
    out, lse = attend(q, k, v, plan, return_lse=True)
    mine, mine_lse = attend(q, k, v, plan.owned(rows), return_lse=True)
    torch.testing.assert_close(mine[:, rows.tokens], out[:, rows.tokens], atol=1e-6, rtol=0)
    torch.testing.assert_close(mine_lse[..., rows.tokens], lse[..., rows.tokens], atol=1e-5, rtol=0)
    assert mine.isfinite().all()


@pytest.mark.parametrize("runs", RUNS)
@pytest.mark.parametrize("name", [name for name in PLANS if name != "text-rows"])
def test_keys_that_are_not_wanted_are_not_read(name, runs):
    q, k, v = tensors()
    plan, rows = PLANS[name](), rows_of(RUNS[runs])
    wanted = rows.keys(plan).expand(H, -1).T  # [S, H]
    assert not wanted.all()
    expected, _ = attend(q, k, v, plan)
    k, v = (x.masked_fill(~wanted[..., None], 1e3) for x in (k, v))
    # Rows of others in blocks that hold rows of this rank want no other keys.
    found, _ = attend(q, k, v, plan.owned(rows))
    torch.testing.assert_close(found[:, rows.tokens], expected[:, rows.tokens], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", PLANS)
def test_densities_of_ranks_make_that_of_the_plan(name):
    plan = PLANS[name]()
    parts = [rows_of(runs) for runs in ([(0, 40), (90, 10)], [(40, 50)], [(100, 50)])]
    whole = sum(rows.count / S * rows.density(plan.owned(rows)) for rows in parts)
    assert whole == pytest.approx(plan.density().mean().item(), abs=1e-6)


def test_whole_blocks_stay_even_and_scattered_rows_become_clusters():
    half = rows_of([(0, 75)])
    assert isinstance(half.cut(PLANS["raster"]()).mask, BlockMask)
    assert isinstance(half.cut(PLANS["orders"]()).mask, ClusterMask)


def test_the_latest_cut_is_kept_with_its_plan():
    plan, half = PLANS["order"](), rows_of([(0, 75)])
    owned = plan.owned(half)
    assert plan.owned(rows_of([(0, 75)])) is owned and owned.cut() is owned.cut()
    assert plan.owned(rows_of([(75, 75)])) is not owned
    assert replace(owned, mask=blocks(1, H)).cut() is not owned.cut()
