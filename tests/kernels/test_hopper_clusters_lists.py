"""Lists of pieces and query tiles, against what the clusters' sizes say; in Triton's interpreter too."""

import pytest
import torch
from places import INTERPRETED, PLACES

from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

lists = pytest.importorskip("dittools.kernels.clusters.hopper_lists")

MAKE = {"portable": lists.plain_lists, "triton": lists.triton_lists}
places = pytest.mark.parametrize("place", [p for p in PLACES if p.id != "portable-cuda"])


def random_mask(queries, keys, counts, lanes=(1, 1), density=0.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sides = []
    for length, count in zip((queries, keys), counts, strict=True):
        weights = torch.rand(*lanes, count, generator=generator) ** 3
        ends = (weights.cumsum(-1) / weights.sum(-1, keepdim=True) * length).round().int()
        ends[..., -1] = length
        first = torch.zeros(*lanes, 1, dtype=torch.int32)
        sides.append(ClusterPartition(length, ends.diff(dim=-1, prepend=first).int()))
    keep = torch.rand(*lanes, *counts, generator=generator) < density
    return ClusterMask(keep, *sides)


def slots_of(found, lane, row):
    """The list read as the kernel does: of each slot its 128 keys, None for a dead one."""
    counts, pieces = found.counts[lane, row].tolist(), found.pieces[lane, row].tolist()
    rows, before = [], 0
    for section, (size, end) in enumerate(zip((64, 32, 16, 8, 8), counts, strict=True)):
        for first in pieces[before:end]:
            assert len(rows) % size == 0, "a piece straddles two slots"
            rows += range(first, first + size)
        before = end
        if section == 3:
            whole = len(rows)
    slots = []
    for i in range(0, max(len(rows), 1), 128):
        slot = rows[i : i + 128]
        if i + 128 > whole:
            low, high = found.live[lane, row, i // 128 - whole // 128].tolist()
            live = [(low >> 4 * g & 15) for g in range(8)] + [(high >> 4 * g & 15) for g in range(8)]
            assert all(n <= 8 for n in live)
            slot = [x if j % 8 < live[j // 8] else None for j, x in enumerate(slot + [None] * (128 - len(slot)))]
            assert None not in [slot[j] for j, n in enumerate(live) for j in range(8 * j, 8 * j + n)]
        slots.append(slot)
    return slots


def check(place, mask, heads, lanes):
    implementation, device = place
    table = lists.cut(mask.to(device).key)
    found = MAKE[implementation](mask.to(device), table, lanes, heads)
    found = lists.Lists(*(x.cpu() for x in found))
    assert all(x.dtype == torch.int32 and x.shape[:2] == (len(lanes), mask.query.count) for x in found)
    offsets = mask.query.offsets()
    for i, lane in enumerate(lanes):
        b, h = lane // heads, lane % heads
        mine = offsets[0 if offsets.shape[0] == 1 else b, 0 if offsets.shape[1] == 1 else h].tolist()
        for row in range(mask.query.count):
            slots = slots_of(found, i, row)
            kept = sorted(x for slot in slots for x in slot if x is not None)
            if mine[row] < mine[row + 1]:
                assert kept == mask.to_tokens(b, h, [mine[row]])[0].nonzero().flatten().tolist()
            # No slot but that of an empty list is without a live key.
            assert not kept or all(any(x is not None for x in slot) for slot in slots)
    return found


@places
@pytest.mark.parametrize("counts", [(1, 1), (3, 7), (2, 60)], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.4, 1.0])
def test_lists_hold_the_keys_of_the_clusters_kept(place, counts, density):
    check(place, random_mask(50, 900, counts, density=density), 1, range(1))


@places
def test_lists_of_lanes_that_share_or_do_not(place):
    one, other = random_mask(40, 500, (3, 11), (2, 3)), random_mask(40, 500, (3, 11), (1, 1), seed=1)
    check(place, one, 3, range(6))
    check(place, one, 3, range(2, 5))
    check(place, ClusterMask(one.keep, other.query, other.key), 3, range(6))
    check(place, ClusterMask(other.keep, one.query, one.key), 3, range(1, 6))


@places
def test_lists_are_longer_than_what_one_program_reads_at_a_time(place):
    sizes = torch.full((1, 1, 1100), 11, dtype=torch.int32)
    key = ClusterPartition(12100, sizes)
    keep = torch.rand(1, 1, 2, 1100, generator=torch.Generator().manual_seed(0)) < 0.9
    check(place, ClusterMask(keep, random_mask(9, 9, (2, 2)).query, key), 1, range(1))


@pytest.mark.parametrize("place", [p for p in PLACES if "portable" not in p.id])
def test_both_ways_give_the_same(place):
    mask = random_mask(50, 2000, (9, 40), (1, 2))
    found = check(place, mask, 2, range(2))
    want = lists.plain_lists(mask, lists.cut(mask.key), range(2), 2)
    assert torch.equal(found.counts, want.counts) and torch.equal(found.live, want.live)
    for i, end in enumerate(want.counts[..., -1].flatten().tolist()):
        assert torch.equal(found.pieces.flatten(0, 1)[i, :end], want.pieces.flatten(0, 1)[i, :end])


@pytest.mark.skipif(INTERPRETED, reason="has no Triton path")
@pytest.mark.parametrize("lanes", [(1, 1), (1, 2), (2, 2)], ids=str)
def test_tiles_cut_every_cluster_and_the_costliest_come_first(lanes):
    mask = random_mask(2000, 300, (9, 4), lanes)
    work = torch.rand(*lanes, 9)
    tiles = lists.query_tiles(mask.query, work, 128, 0.5)
    assert tiles.dtype == torch.int32 and tiles.shape == (*lanes, 2000 // 128 + 9, 3)
    sizes, offsets = (x.expand(*lanes, -1) for x in (mask.query.sizes(), mask.query.offsets()))
    for b in range(lanes[0]):
        for h in range(lanes[1]):
            want = set()
            for m, size in enumerate(sizes[b, h].tolist()):
                begin = int(offsets[b, h, m])
                want |= {(m, begin + i, min(128, size - i)) for i in range(0, size, 128)}
            found = [tuple(tile) for tile in tiles[b, h].tolist() if tile[2] > 0]
            assert set(found) == want and len(found) == len(want)
            assert all(tile[2] == 0 for tile in tiles[b, h].tolist()[len(want) :])
            cost = [float(work[b, h, m]) * (1 if rows > 64 else 0.5) for m, _, rows in found]
            assert cost == sorted(cost, reverse=True)
