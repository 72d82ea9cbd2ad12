"""Attention between clusters in Triton: runs of any size packed into whole tiles; sm80 and up.

A tile of keys must be full to be worth its time, and a cluster of 75 keys does not fill tiles of 64. So each query
cluster gets a list of *granules*, short stretches of one kept cluster, and a tile is as many granules as it holds,
from whatever clusters they come. Whole granules stand first in the list and need no mask; what is left of each
cluster follows. Query tiles belong to one cluster each; those that a cluster does not fill half are launched apart,
half as tall.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dittools.kernels.block_sparse.triton import tile_shape
from dittools.kernels.clusters.runs import unroll
from dittools.kernels.permute.dispatch import gather_tokens
from dittools.kernels.strides import lane_strides
from dittools.kernels.triton_parts import LN_2, LOG2_E, attend_tile, tokens_at

GRANULE = 16  # keys; a power of two
LIVE_BITS = 5  # an entry of a list is a position and, in its low bits, how many keys of the granule live
# Lists are as long as they may have to be, so heads are taken a few at a time.
LIST_BYTES = 128 << 20


@triton.jit
def _granule_lists(
    p_keep, p_owner, p_entry, p_list, p_counts, heads, queries, clusters, slots, whole_slots, first_lane,
    stride_keep_b, stride_keep_h, stride_table_b, stride_table_h, BLOCK: tl.constexpr,
):  # fmt: skip
    """Grid: (query clusters, lanes). Of the lane's granules, those whose cluster is kept, in the table's order."""
    i_m = tl.program_id(0)
    i_here = tl.program_id(1).to(tl.int64)
    i_b = (i_here + first_lane) // heads
    i_h = (i_here + first_lane) % heads
    p_keep += i_b * stride_keep_b + i_h * stride_keep_h + i_m.to(tl.int64) * clusters
    p_owner += i_b * stride_table_b + i_h * stride_table_h
    p_entry += i_b * stride_table_b + i_h * stride_table_h
    p_list += (i_here * queries + i_m) * slots
    filled = 0
    whole = 0
    for i in range(0, slots, BLOCK):
        o_slot = i + tl.arange(0, BLOCK)
        b_owner = tl.load(p_owner + o_slot, mask=o_slot < slots, other=clusters)
        b_kept = tl.load(p_keep + b_owner, mask=b_owner < clusters, other=0).to(tl.int32)
        b_entry = tl.load(p_entry + o_slot, mask=o_slot < slots, other=0)
        o_to = filled + tl.cumsum(b_kept, 0) - 1
        tl.store(p_list + o_to, b_entry, mask=b_kept > 0)
        filled += tl.sum(b_kept, 0)
        whole += tl.sum(tl.where(o_slot < whole_slots, b_kept, 0), 0)
    o_count = (i_here * queries + i_m) * 2
    tl.store(p_counts + o_count, whole)
    tl.store(p_counts + o_count + 1, filled)


@triton.jit
def _cluster_forward(
    p_q, p_k, p_v, p_out, p_lse, p_list, p_counts, p_order, p_key_order,
    p_tile_cluster, p_tile_start, p_tile_rows,
    scale, queries, keys, heads, query_clusters, slots, first_lane,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    stride_ob, stride_os, stride_oh, stride_pb, stride_ph, stride_cb, stride_ch, stride_tb, stride_th,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, GRANULE: tl.constexpr, BITS: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_KEY_ORDER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query tiles, lanes), tiles fastest: programs in flight share one head's K and V in L2."""
    i_here = tl.program_id(1).to(tl.int64)
    i_lane = i_here + first_lane
    i_b = i_lane // heads
    i_h = i_lane % heads
    o_tile = i_b * stride_tb + i_h * stride_th + tl.program_id(0)
    i_m = tl.load(p_tile_cluster + o_tile)
    start = tl.load(p_tile_start + o_tile)
    rows = tl.load(p_tile_rows + o_tile)
    if rows == 0:  # more tiles are launched than clusters may need
        return
    PARTS: tl.constexpr = BN // GRANULE

    p_q += i_b * stride_qb + i_h * stride_qh
    p_k += i_b * stride_kb + i_h * stride_kh
    p_v += i_b * stride_vb + i_h * stride_vh
    p_out += i_b * stride_ob + i_h * stride_oh
    p_lse += i_lane * queries
    p_order += i_b * stride_pb + i_h * stride_ph
    p_key_order += i_b * stride_cb + i_h * stride_ch
    p_list += (i_here * query_clusters + i_m) * slots
    p_counts += (i_here * query_clusters + i_m) * 2

    o_d = tl.arange(0, BD)
    o_n = tl.arange(0, BN)
    o_part = o_n // GRANULE
    o_in = o_n % GRANULE
    o_m = start + tl.arange(0, BM)
    in_m = tl.arange(0, BM) < rows
    o_row = tokens_at(p_order, o_m, start + rows, HAS_ORDER, True)
    in_q = in_m[:, None] & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_row[:, None] * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]

    b_acc = tl.zeros([BM, BD], dtype=tl.float32)
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    scale = scale * LOG2_E

    whole = tl.load(p_counts) // PARTS  # tiles of whole granules
    filled = tl.load(p_counts + 1)
    # The next turn's positions are looked up one turn early: its addresses are known when the turn begins.
    b_entry = tl.load(p_list + o_part, mask=o_part < filled, other=0)  # [BN]
    o_token = tokens_at(p_key_order, (b_entry >> BITS) + o_in, keys, HAS_KEY_ORDER, True)  # [BN]
    b_ahead = tl.load(p_list + PARTS + o_part, mask=PARTS + o_part < filled, other=0)
    for j in range(0, whole):
        o_next = tokens_at(p_key_order, (b_ahead >> BITS) + o_in, keys, HAS_KEY_ORDER, True)
        o_after = (j + 2) * PARTS + o_part
        b_after = tl.load(p_list + o_after, mask=o_after < filled, other=0)
        b_acc, b_max, b_sum = attend_tile(
            b_q, b_acc, b_max, b_sum, p_k, p_v, o_token, o_d, o_n < BN, 0.0, scale, stride_ks, stride_vs,
            D, BD, False, False, PRECISION,
        )  # fmt: skip
        o_token = o_next
        b_ahead = b_after
    for j in tl.range(whole, tl.cdiv(filled, PARTS), num_stages=1):
        # Each tile here holds a live key, since each granule in a list does: no maximum is of nothing.
        o_entry = j * PARTS + o_part
        b_entry = tl.load(p_list + o_entry, mask=o_entry < filled, other=0)  # [BN]
        live = o_in < (b_entry & ((1 << BITS) - 1))
        o_position = tl.where(live, (b_entry >> BITS) + o_in, 0)
        o_token = tokens_at(p_key_order, o_position, keys, HAS_KEY_ORDER, False)
        b_acc, b_max, b_sum = attend_tile(
            b_q, b_acc, b_max, b_sum, p_k, p_v, o_token, o_d, live, 0.0, scale, stride_ks, stride_vs,
            D, BD, True, False, PRECISION,
        )  # fmt: skip

    b_total = tl.where(b_sum > 0, b_sum, 1.0)  # an empty row: zeros, and its maximum of -inf as LSE
    b_out = b_acc / b_total[:, None]  # [BM, BD]
    b_lse = (b_max + tl.log2(b_total)) * LN_2  # [BM]
    tl.store(p_out + o_row[:, None] * stride_os + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=in_q)
    tl.store(p_lse + o_row, b_lse, mask=in_m)


class Granules(NamedTuple):
    """All granules of a lane's keys, whole ones first. ``owner`` is the number of clusters where a slot is void."""

    entry: torch.Tensor  # int32 [B or 1, H or 1, slots]: first position << LIVE_BITS | live keys
    owner: torch.Tensor  # int32 [B or 1, H or 1, slots]: cluster
    whole_slots: int


class QueryTiles(NamedTuple):
    """Tiles of query positions, each within one cluster: int32 ``[B or 1, H or 1, tiles]``; void where rows is 0."""

    cluster: torch.Tensor
    start: torch.Tensor
    rows: torch.Tensor


def granules(key, size: int = GRANULE) -> Granules:
    """Cut each key cluster into stretches of ``size`` and one of the rest. ``key``: a ClusterPartition."""
    sizes, offsets, clusters = key.run_sizes, key.offsets(), key.count
    cluster, rank = unroll(sizes // size, key.length // size)
    begin = offsets.gather(-1, cluster.clamp_max(clusters - 1)) + rank * size
    rest = sizes % size  # [.., Nk]
    entry = torch.cat((begin << LIVE_BITS | size, (offsets[..., 1:] - rest) << LIVE_BITS | rest), -1)
    own = torch.arange(clusters, device=sizes.device).expand(rest.shape)
    owner = torch.cat((cluster, own.masked_fill(rest == 0, clusters)), -1)
    return Granules(entry.int().contiguous(), owner.int().contiguous(), key.length // size)


def query_tiles(query, tall: int, work: torch.Tensor) -> tuple[QueryTiles, QueryTiles]:
    """Tiles of ``tall`` rows, and those of ``tall // 2`` for rests that fit; heaviest first.

    Args:
        query: a ClusterPartition.
        tall: even.
        work: ``[B or 1, H or 1, Mq]``, what a row of each cluster costs.
    """
    sizes, offsets = query.run_sizes, query.offsets()
    rest = sizes % tall
    short = (rest > 0) & (rest <= tall // 2)
    number = torch.where(short, sizes // tall, (sizes + tall - 1) // tall)
    # A tile holds `tall` rows, or it is the one last tile of a cluster.
    cluster, rank = unroll(number, query.length // tall + query.count)
    mine = cluster.clamp_max(query.count - 1)
    rows = (sizes.gather(-1, mine) - rank * tall).clamp(0, tall).masked_fill(cluster == query.count, 0)
    shape = torch.broadcast_shapes(work.shape[:2], mine.shape[:2])
    cost = work.expand(*shape, -1).gather(-1, mine.expand(*shape, -1)).masked_fill(rows == 0, -1)
    first = cost.sort(dim=-1, descending=True, stable=True).indices
    parts = (mine, offsets.gather(-1, mine) + rank * tall, rows)
    high = QueryTiles(*(x.expand(*shape, -1).gather(-1, first).int().contiguous() for x in parts))
    own = torch.arange(query.count, device=sizes.device).expand(sizes.shape)
    low = QueryTiles(*(x.int().contiguous() for x in (own, offsets[..., 1:] - rest, torch.where(short, rest, 0))))
    return high, low


def granule_lists(mask, table: Granules, lanes: range, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of kept granules of some lanes.

    Returns:
        counts int32 ``[lanes, Mq, 2]`` (whole granules, all granules), and lists int32 ``[lanes, Mq, slots]`` of
        entries, whole ones first; what stands after the count was never written.
    """
    slots, rows = table.entry.shape[-1], mask.query.count
    keep = mask.keep.contiguous()
    lists = torch.empty(len(lanes), rows, slots, dtype=torch.int32, device=keep.device)
    counts = torch.empty(len(lanes), rows, 2, dtype=torch.int32, device=keep.device)
    _granule_lists[(rows, len(lanes))](
        keep.view(torch.uint8), table.owner, table.entry, lists, counts, heads, rows, mask.key.count, slots,
        table.whole_slots, lanes.start, *lane_strides(keep), *lane_strides(table.entry),
        BLOCK=min(1024, triton.next_power_of_2(slots)), num_warps=4,
    )  # fmt: skip
    return counts, lists


def triton_cluster_attention(
    q, k, v, mask, *, order=None, key_order=None, scale: float, permute: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernels: `cluster_sparse_attention` with the LSE, D in {64, 96, 128}.

    ``permute``: bring K and V into their order first, in one pass; else read them through it, row by row.
    """
    batches, queries, heads, dim = q.shape
    keys = k.shape[1]
    if permute and key_order is not None:
        k, v = gather_tokens((k, v), key_order)
        key_order = None
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    order, key_order = (None if x is None else x.int().contiguous() for x in (order, key_order))
    out = torch.empty((batches, queries, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batches, heads, queries), dtype=torch.float32, device=q.device)
    shape = tile_shape(q.device, q.dtype, dim, 128, 128)
    table = granules(mask.key)
    work = (mask.keep * mask.key.run_sizes[..., None, :]).sum(-1)
    tall, low = query_tiles(mask.query, shape["BM"], work)
    launches = [(tall, shape), (low, {**shape, "BM": shape["BM"] // 2, "num_warps": max(4, shape["num_warps"] // 2)})]

    lanes = batches * heads
    step = max(1, LIST_BYTES // (4 * mask.query.count * table.entry.shape[-1]))
    for first in range(0, lanes, step):
        some = range(first, min(first + step, lanes))
        counts, lists = granule_lists(mask, table, some, heads)
        for tiles, tile in launches:
            count = tiles.rows.shape[-1]
            _cluster_forward[(count, len(some))](
                q, k, v, out, lse, lists, counts, counts if order is None else order,
                counts if key_order is None else key_order, *tiles,
                scale, queries, keys, heads, mask.query.count, lists.shape[-1], first,
                *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
                *lane_strides(order), *lane_strides(key_order), *lane_strides(tiles.rows),
                D=dim, BD=triton.next_power_of_2(dim), GRANULE=GRANULE, BITS=LIVE_BITS,
                HAS_ORDER=order is not None, HAS_KEY_ORDER=key_order is not None,
                PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32", **tile,
            )  # fmt: skip
    return out, lse
