"""The source of the Hopper kernel for clusters, run in `gluon_emulator` against the oracle."""

from types import SimpleNamespace

import pytest
import torch
from cases import inputs, random_order, rms_error
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kernels import gather_tokens
from dittools.kernels.capability import why_no_gluon
from dittools.kernels.clusters import hopper as hopper_clusters
from dittools.kernels.clusters.hopper import launch_arguments
from dittools.kernels.clusters.naive import naive_cluster_attention
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))


def clusters(*sizes):
    """One lane of these sizes."""
    return ClusterPartition(sum(sizes), torch.tensor([[sizes]], dtype=torch.int32))


def random_clusters(length, count, lanes=(1, 1), seed=0):
    """Sizes from 0 up, other ones in each lane, that sum to ``length``."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*lanes, count, generator=generator) ** 3
    ends = (weights.cumsum(-1) / weights.sum(-1, keepdim=True) * length).round().int()
    ends[..., -1] = length
    return ClusterPartition(length, ends.diff(dim=-1, prepend=torch.zeros(*lanes, 1, dtype=torch.int32)).int())


def random_mask(queries, keys, counts, lanes=(1, 1), density=0.5, seed=0):
    keep = torch.rand(*lanes, *counts, generator=torch.Generator().manual_seed(seed + 1)) < density
    parts = random_clusters(queries, counts[0], lanes, seed), random_clusters(keys, counts[1], lanes, seed + 7)
    return ClusterMask(keep, *parts)


def run(q, k, v, mask, *, order=None, key_order=None, scale=0.1, seed=0):
    from gluon_emulator import emulate

    from dittools.kernels.clusters.hopper_forward import cluster_forward

    placed = (k, v) if key_order is None else gather_tokens((k, v), key_order)
    out, lse, launches = launch_arguments(q, *placed, mask, scale, order)
    out.fill_(torch.nan)
    lse.fill_(torch.nan)
    for programs, arguments, options in launches:
        emulate(cluster_forward, programs, arguments, options, seed)
    exact, exact_lse = naive_cluster_attention(
        q.float(), k.float(), v.float(), mask, order=order, key_order=key_order, scale=scale
    )
    assert rms_error(out, exact) < 2.0**-7, rms_error(out, exact)
    # The RMS over all would forgive a few rows.
    worst = ((out.float() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(0.1)).max()
    assert worst < 0.05, worst
    empty = exact_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    torch.testing.assert_close(lse[~empty], exact_lse[~empty], atol=1e-4, rtol=1e-5)
    return out, lse


@settings(max_examples=25, deadline=None)
@given(
    queries=st.integers(1, 500),
    keys=st.integers(1, 900),
    counts=st.tuples(st.integers(1, 7), st.integers(1, 40)),
    lanes=st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2)]),
    dim=st.sampled_from([64, 128]),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
    density=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    ordered=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_sizes(**case):
    any_sizes(SimpleNamespace(**case))


def any_sizes(case):
    queries, keys, lanes, seed, ordered = case.queries, case.keys, case.lanes, case.seed, case.ordered
    q, k, v = inputs(lanes[0], queries, lanes[1], case.dim, case.dtype, keys=keys, seed=seed)
    mask = random_mask(queries, keys, case.counts, lanes, case.density, seed)
    orders = (random_order(*lanes, queries, seed), random_order(*lanes, keys, seed + 1)) if ordered else (None, None)
    run(q, k, v, mask, order=orders[0], key_order=orders[1], seed=seed)


# Sizes of key clusters that make each kind of slot: full ones, pieces of every size, rests over several slots.
KEY_SIZES = {
    "one key": (1,),
    "one slot": (128,),
    "full slots": (256, 128, 64, 64),
    "pieces of every size": (64 + 32 + 16 + 8, 32 + 16, 8, 64),
    "rests": (7,) * 40,
    "rests behind a slot that is not full": (64 + 5, 3, 64 + 16 + 1, 9, 15, 31),
    "rests and empty clusters": (0, 5, 0, 0, 130, 0, 71, 0),
    "one giant": (3, 700, 2, 0, 1),
}


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("sizes", KEY_SIZES.values(), ids=KEY_SIZES)
def test_every_kind_of_slot(sizes, dim):
    key = clusters(*sizes)
    query = clusters(64, 3, 0, 128, 65, 130, 1)
    q, k, v = inputs(1, query.length, 1, dim, torch.bfloat16, keys=key.length)
    keep = torch.rand(1, 1, query.count, key.count, generator=torch.Generator().manual_seed(2)) < 0.7
    keep[0, 0, 0], keep[0, 0, 3], keep[0, 0, 4] = True, True, False
    run(q, k, v, ClusterMask(keep, query, key))


def test_tiles_of_every_height():
    key = clusters(70, 130)
    for sizes in ((1,), (63,), (64,), (65,), (127,), (128,), (129, 5), (191, 192, 193), (256, 0, 257)):
        query = clusters(*sizes)
        q, k, v = inputs(1, query.length, 1, 64, torch.bfloat16, keys=200)
        run(q, k, v, ClusterMask.full(query, key))


@pytest.mark.parametrize("lanes", [(1, 1), (1, 3), (2, 1), (2, 3)], ids=str)
def test_masks_sizes_and_orders_are_shared_or_of_a_batch_and_a_head(lanes):
    q, k, v = inputs(2, 150, 3, 64, torch.bfloat16)
    one, other = random_mask(150, 150, (4, 9), lanes), random_mask(150, 150, (4, 9), (2, 3), seed=3)
    run(q, k, v, one, order=random_order(2, 3, 150), key_order=random_order(*lanes, 150, seed=1))
    run(q, k, v, ClusterMask(other.keep, one.query, other.key), order=random_order(*lanes, 150))
    run(q, k, v, ClusterMask(one.keep, other.query, one.key))


def test_lanes_some_at_a_time_give_the_same(monkeypatch):
    q, k, v = inputs(2, 150, 3, 64, torch.bfloat16)
    mask = random_mask(150, 150, (4, 9), (2, 3))
    want = run(q, k, v, mask)
    monkeypatch.setattr(hopper_clusters, "LIST_BYTES", 2 * 4 * 4 * (150 // 64 + 4 * 9))
    _, _, launches = launch_arguments(q, k, v, mask, 0.1)
    tiles = 150 // 128 + 4
    assert [programs for programs, _, _ in launches] == [2 * tiles] * 3
    found = run(q, k, v, mask)
    assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])


@pytest.mark.parametrize("layout", ["packed", "heads first", "odd offset", "expanded", "dim first"])
def test_any_strides(layout):
    q, k, v = inputs(2, 130, 2, 64, torch.float16)
    if layout == "packed":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    elif layout == "heads first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "odd offset":
        q, k, v = (torch.cat((x[..., :1], x), -1)[..., 1:] for x in (q, k, v))
    elif layout == "dim first":
        q, k, v = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v))
    else:
        k, v = (x[:, :, :1].expand(-1, -1, 2, -1) for x in (k, v))
    run(q, k, v, random_mask(130, 130, (3, 6), (1, 2)))


def test_keys_that_are_not_kept_have_no_influence():
    q, k, v = inputs(1, 300, 1, 64, torch.bfloat16)
    # Each is copied along with the rest of the cluster before it.
    key = clusters(77, 20, 90, 13, 95, 5)
    keep = torch.tensor([[[[True, False, True, False, True, False], [False, True, False, False, True, False]]]])
    mask = ClusterMask(keep, clusters(100, 200), key)
    want, want_lse = run(q, k, v, mask)
    k[:, 187:200], v[:, 187:200] = 1e30, -1e30
    k[:, 295:], v[:, 295:] = -1e30, 1e30
    found, found_lse = run(q, k, v, mask)
    assert torch.equal(found, want) and torch.equal(found_lse, want_lse)
    v[:, 97:187] += 1
    assert (run(q, k, v, mask)[0][:, :100] != want[:, :100]).any(-1).all()


def test_units_behind_the_end_of_a_list_are_zeros_and_no_key():
    q, k, v = inputs(1, 60, 1, 64, torch.bfloat16, keys=300)
    mask = ClusterMask(torch.tensor([[[[False, True]]]]), clusters(60), clusters(100, 200))
    v[:, :100] = torch.inf
    run(q, k, v, mask)


def test_a_tile_writes_the_rows_of_its_cluster_and_no_other():
    from gluon_emulator import emulate

    from dittools.kernels.clusters.hopper_forward import cluster_forward

    q, k, v = inputs(1, 300, 1, 64, torch.bfloat16)
    mask = ClusterMask.full(clusters(70, 30, 180, 20), clusters(100, 200))
    order = random_order(1, 1, 300)
    out, lse, launches = launch_arguments(q, k, v, mask, 0.1, order)
    ((_, arguments, options),) = launches
    tiles = arguments[11]
    assert sorted(tiles[..., 2].flatten().tolist()) == [0, 20, 30, 52, 70, 128]
    for turn, (_, start, rows) in enumerate(tiles[0, 0].tolist()):
        out.fill_(torch.nan)
        lse.fill_(torch.nan)
        alone = list(arguments)
        alone[11] = tiles[:, :, turn : turn + 1].contiguous()
        emulate(cluster_forward, 1, alone, options)
        mine = torch.zeros(300, dtype=torch.bool)
        mine[order[0, 0, start : start + rows].long()] = True
        assert torch.equal(~lse[0, 0].isnan(), mine)
        assert torch.equal(~out[0, :, 0].isnan().any(-1), mine) and torch.equal(~out[0, :, 0].isnan().all(-1), mine)


@pytest.mark.parametrize("keep", [False, True])
def test_all_or_nothing(keep):
    q, k, v = inputs(1, 200, 1, 64, torch.bfloat16)
    mask = random_mask(200, 200, (3, 20))
    mask.keep[:] = keep
    _, lse = run(q, k, v, mask, order=random_order(1, 1, 200), key_order=random_order(1, 1, 200, seed=4))
    assert lse.isneginf().all() == (not keep)


def test_a_mask_that_keeps_only_empty_clusters_keeps_nothing():
    q, k, v = inputs(1, 100, 1, 64, torch.bfloat16)
    keep = torch.tensor([False, True, False]).expand(1, 1, 2, 3)
    _, lse = run(q, k, v, ClusterMask(keep, clusters(40, 60), clusters(60, 0, 40)))
    assert lse.isneginf().all()
