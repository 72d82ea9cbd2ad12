"""What the Hopper kernel for clusters walks: query tiles, and lists of pieces of kept key clusters.

A key cluster is cut, from its front, into pieces of 64 keys and at most one each of 32, 16 and 8 keys; what is left
over, fewer than 8 keys, is a piece of 8 with dead keys. 8 keys are a *unit*. A query cluster's list holds the pieces of
the clusters it keeps, whole ones first and largest first. Nothing here waits for the device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dittools.kernels.clusters.runs import unroll
from dittools.kernels.strides import lane_strides

SECTIONS = 5  # pieces of 64, 32, 16 and 8 keys, and the rests
LIVE_BITS = 4  # an entry of the table is a position and, in its low bits, how many keys of a rest live
UNIT = 8  # keys in the smallest piece; how many of them live is one number of four bits
SLOT = 128


class VarlenTiles(NamedTuple):
    """All pieces of a lane's keys, section by section. ``owner`` is the number of clusters where a piece is void."""

    entry: torch.Tensor  # int32 [B or 1, H or 1, pieces]: first position << LIVE_BITS | live keys of a rest
    owner: torch.Tensor  # int32 [B or 1, H or 1, pieces]: cluster
    first: int  # entries of the first section; each of the others has one for each cluster


class Lists(NamedTuple):
    """Lists of some lanes. What stands after the count was never written."""

    counts: torch.Tensor  # int32 [lanes, Mq, 5]: pieces up to the end of each section
    pieces: torch.Tensor  # int32 [lanes, Mq, pieces]: first positions
    live: torch.Tensor  # int32 [lanes, Mq, slots, 2]: of slots with a dead key, live keys of each 8, in 4 bits each


def cut(key) -> VarlenTiles:
    """The pieces of each key cluster. ``key``: a ClusterPartition."""
    sizes, offsets, clusters = key.run_sizes, key.offsets()[..., :-1], key.count
    cluster, rank = unroll(sizes // 64, key.length // 64)
    entries = [(offsets.gather(-1, cluster.clamp_max(clusters - 1)) + rank * 64) << LIVE_BITS]
    owners = [cluster]
    own = torch.arange(clusters, device=sizes.device).expand(sizes.shape)
    for size in (32, 16, 8):
        begin = offsets + sizes // (2 * size) * (2 * size)
        entries.append(begin << LIVE_BITS)
        owners.append(own.masked_fill(sizes & size == 0, clusters))
    rest = sizes % UNIT
    entries.append((offsets + sizes - rest) << LIVE_BITS | rest)
    owners.append(own.masked_fill(rest == 0, clusters))
    entry, owner = (torch.cat(x, -1).int().contiguous() for x in (entries, owners))
    return VarlenTiles(entry, owner, key.length // 64)


def live_slots(clusters: int) -> int:
    """Slots of a list that may hold a dead key, at most: rests, and what is not full before them."""
    units = SLOT // UNIT
    return max(1, (clusters + 2 * (units - 1)) // units)


@triton.jit
def _piece_lists(
    p_keep, p_owner, p_entry, p_list, p_counts, p_live, heads, queries, clusters, pieces, first, live_slots, first_lane,
    stride_keep_b, stride_keep_h, stride_table_b, stride_table_h,
    BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: (query clusters, lanes). Of the lane's pieces, those whose cluster is kept, in the table's order."""
    i_m = tl.program_id(0)
    i_here = tl.program_id(1).to(tl.int64)
    i_b = (i_here + first_lane) // heads
    i_h = (i_here + first_lane) % heads
    p_keep += i_b * stride_keep_b + i_h * stride_keep_h + i_m.to(tl.int64) * clusters
    p_owner += i_b * stride_table_b + i_h * stride_table_h
    p_entry += i_b * stride_table_b + i_h * stride_table_h
    i_list = i_here * queries + i_m
    p_list += i_list * pieces
    p_live += i_list * live_slots * 2
    UNITS: tl.constexpr = 16  # of 8 keys, in a slot
    filled = 0
    whole = 0  # units
    begin = 0
    end = first
    for i_section in tl.static_range(5):
        begun = filled
        for i in range(begin, end, BLOCK):
            o_piece = i + tl.arange(0, BLOCK)
            b_owner = tl.load(p_owner + o_piece, mask=o_piece < end, other=clusters)
            b_kept = tl.load(p_keep + b_owner, mask=b_owner < clusters, other=0).to(tl.int32)
            b_entry = tl.load(p_entry + o_piece, mask=o_piece < end, other=0)
            o_to = filled + tl.cumsum(b_kept, 0) - 1
            tl.store(p_list + o_to, b_entry >> BITS, mask=b_kept > 0)
            if i_section == 4:
                b_live = b_entry & ((1 << BITS) - 1)
                o_unit = whole % UNITS + o_to - begun
                tl.atomic_add(p_live + o_unit // 8, b_live << (o_unit % 8 * 4), mask=b_kept > 0)
            filled += tl.sum(b_kept, 0)
        if i_section < 4:
            size = 64 >> i_section
            whole += (filled - begun) * (size // 8)
        tl.store(p_counts + i_list * 5 + i_section, filled)
        begin = end
        end += clusters
    # Whole pieces that share a slot with rests.
    o_word = tl.arange(0, 2)
    b_groups = tl.minimum(tl.maximum(whole % UNITS - o_word * 8, 0), 8)
    b_full = tl.where(b_groups == 8, -2004318072, (1 << (b_groups % 8 * 4)) // 15 * 8)
    tl.atomic_add(p_live + o_word, b_full, mask=b_groups > 0)


def piece_lists(mask, table: VarlenTiles, lanes: range, heads: int) -> Lists:
    """Lists of some lanes, a lane being ``batch * heads + head``. ``mask``: a ClusterMask."""
    make = triton_lists if mask.keep.device.type == "cuda" else plain_lists
    return make(mask, table, lanes, heads)


def triton_lists(mask, table: VarlenTiles, lanes: range, heads: int) -> Lists:
    """Those of `piece_lists`, one program a list."""
    pieces, rows, clusters = table.entry.shape[-1], mask.query.count, mask.key.count
    keep, slots = mask.keep.contiguous(), live_slots(clusters)
    new = {"dtype": torch.int32, "device": keep.device}
    counts = torch.empty(len(lanes), rows, SECTIONS, **new)
    lists = torch.empty(len(lanes), rows, pieces, **new)
    live = torch.zeros(len(lanes), rows, slots, 2, **new)
    _piece_lists[(rows, len(lanes))](
        keep.view(torch.uint8), table.owner, table.entry, lists, counts, live, heads, rows, clusters, pieces,
        table.first, slots, lanes.start, *lane_strides(keep), *lane_strides(table.entry),
        BITS=LIVE_BITS, BLOCK=min(1024, triton.next_power_of_2(max(32, table.first, clusters))),
        num_warps=4,
    )  # fmt: skip
    return Lists(counts, lists, live)


def plain_lists(mask, table: VarlenTiles, lanes: range, heads: int) -> Lists:
    """Those of `piece_lists` in PyTorch, lane by lane."""
    clusters, units = mask.key.count, SLOT // UNIT
    batches = max(x.shape[0] for x in (mask.keep, table.entry))
    batches = max(batches, -(-lanes.stop // heads))
    found = []
    for lane in lanes:
        keep, entry, owner = (
            x.expand(batches, heads, *x.shape[2:])[lane // heads, lane % heads]
            for x in (mask.keep, table.entry, table.owner)
        )
        kept = torch.nn.functional.pad(keep, (0, 1))[:, owner.long()]  # [Mq, pieces]
        ends = torch.tensor([table.first + i * clusters for i in range(SECTIONS)], device=keep.device)
        sums = torch.nn.functional.pad(kept.cumsum(-1), (1, 0))
        counts = sums[:, ends]  # [Mq, 5]
        first = (~kept).sort(dim=-1, stable=True).indices
        pieces = entry[first] >> LIVE_BITS
        # Units of a list: those of whole pieces are full, of the rests so many keys live; no unit lives behind them.
        numbers = counts.diff(dim=-1, prepend=torch.zeros_like(counts[:, :1]))
        whole = (numbers[:, :4] * torch.tensor([64, 32, 16, 8], device=keep.device)).sum(-1) // UNIT
        slot = torch.arange(live_slots(clusters) * units, device=keep.device)
        unit = (whole // units * units)[:, None] + slot  # [Mq, units]
        rest = unit - whole[:, None]
        place = (counts[:, 3:4] + rest).clamp(0, pieces.shape[-1] - 1)
        last = entry[first].gather(-1, place) & ((1 << LIVE_BITS) - 1)
        alive = torch.where(rest < 0, UNIT, torch.where(rest < numbers[:, 4:], last, 0))
        words = (alive.view(len(keep), -1, 2, 8) << torch.arange(0, 32, 4, device=keep.device)).sum(-1)
        found.append((counts.int(), pieces.int(), words.int()))
    return Lists(*(torch.stack(x) for x in zip(*found, strict=True)))


def query_tiles(query, work: torch.Tensor, tall: int, short: float) -> torch.Tensor:
    """Tiles of query positions, each within one cluster, the costliest of each lane first.

    Args:
        query: a ClusterPartition.
        work: ``[B or 1, H or 1, Mq]``, keys that a row of each cluster attends.
        tall: rows of a tile.
        short: what a tile of no more than ``tall // 2`` rows costs, of a whole one.

    Returns:
        int32 ``[B or 1, H or 1, tiles, 3]``: cluster, first position, live rows; 0 rows where a tile is void.
    """
    sizes, offsets = query.run_sizes, query.offsets()
    # A tile holds `tall` rows, or it is the one last tile of a cluster.
    cluster, rank = unroll((sizes + tall - 1) // tall, query.length // tall + query.count)
    mine = cluster.clamp_max(query.count - 1)
    rows = (sizes.gather(-1, mine) - rank * tall).clamp(0, tall).masked_fill(cluster == query.count, 0)
    shape = torch.broadcast_shapes(work.shape[:2], mine.shape[:2])
    mine, rank, rows = (x.expand(*shape, -1) for x in (mine, rank, rows))
    cost = work.expand(*shape, -1).gather(-1, mine) * torch.where(rows > tall // 2, 1.0, short)
    first = cost.masked_fill(rows == 0, -1).sort(dim=-1, descending=True, stable=True).indices
    start = offsets.expand(*shape, -1).gather(-1, mine) + rank * tall
    return torch.stack([x.gather(-1, first).int() for x in (mine, start, rows)], -1)
