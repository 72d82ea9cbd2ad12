"""Means of skipped blocks in Triton: set right at anchors in a pass over all keys, merged in a pass over queries.

Merging is a short attention whose bias belongs to the query block of the row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from dittools.kernels.counting_sort.dispatch import runs_of_positions
from dittools.kernels.residual.error_triton import split_range
from dittools.kernels.segment_mean.tiles import cut_runs, splits
from dittools.kernels.strides import lane_strides
from dittools.kernels.triton_parts import LN_2, LOG2_E, tokens_at


@triton.jit
def _mean_tile(p_keys, p_values, i, o_d, columns, D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr):
    """Means from number ``i`` on. Past the end the last one comes again, where the bias is -inf: no masks."""
    o_key = tl.minimum(i + tl.arange(0, BN), columns - 1)[:, None] * D + o_d[None, :]
    if BD != D:
        b_k = tl.load(p_keys + o_key, mask=o_d[None, :] < D, other=0.0)  # [BN, BD]
        b_v = tl.load(p_values + o_key, mask=o_d[None, :] < D, other=0.0)  # [BN, BD]
    else:
        b_k = tl.load(p_keys + o_key)  # [BN, BD]
        b_v = tl.load(p_values + o_key)  # [BN, BD]
    return b_k, b_v


@triton.jit
def _residual_attention(
    p_q, p_out, p_lse, p_keys, p_values, p_bias, p_shift, p_block, p_order, p_new,
    scale, tokens, heads, rows, columns, wide,
    stride_qb, stride_qs, stride_qh, stride_ob, stride_os, stride_oh, stride_nb, stride_ns, stride_nh,
    stride_bb, stride_bh, stride_pb, stride_ph,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, LIMIT: tl.constexpr,
    PER: tl.constexpr, HAS_ORDER: tl.constexpr, HAS_SHIFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of positions, lanes). The means stream past a tile of queries, as keys with a bias do.

    ``columns`` of them, ``PER`` of each key block, which have its bias.

    Query blocks are taken two at a time, most often all that a tile has: of each a row of the bias serves all its rows.
    Weights are relative to the softmax sum of the computed part, which is there already: no running maximum. Where
    that is too small for it, or nothing, the tile starts again, with one.
    """
    i_lane = tl.program_id(1).to(tl.int64)
    i_b = i_lane // heads
    i_h = i_lane % heads
    p_order += i_b * stride_pb + i_h * stride_ph
    p_block += i_b * stride_bb + i_h * stride_bh
    p_keys += i_lane * columns * D
    p_values += i_lane * columns * D
    p_bias += i_lane * rows * wide
    p_shift += i_lane * rows * D

    o_d = tl.arange(0, BD)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    in_m = o_m < tokens
    o_row = tokens_at(p_order, o_m, tokens, HAS_ORDER, True)
    b_block = tl.load(p_block + tl.minimum(o_m, tokens - 1))  # [BM]
    in_q = in_m[:, None] & (o_d[None, :] < D)
    p_bq = p_q + i_b * stride_qb + i_h * stride_qh + o_row[:, None] * stride_qs + o_d[None, :]
    b_q = tl.load(p_bq, mask=in_q, other=0.0)  # [BM, BD]
    b_lse = tl.load(p_lse + i_lane * tokens + o_row, mask=in_m, other=float("inf"))  # [BM], rows past the end: none

    b_acc = tl.zeros([BM, BD], dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    first = tl.min(b_block, 0)
    one = first
    while one < rows:
        two = tl.min(tl.where(b_block > one, b_block, rows), 0)
        in_one = b_block == one
        b_less = tl.where(in_one | (b_block == two), b_lse * LOG2_E, float("inf"))  # other rows weigh nothing now
        p_one = p_bias + one * wide
        p_two = p_bias + tl.minimum(two, rows - 1) * wide
        for i in range(0, columns, BN):
            b_k, b_v = _mean_tile(p_keys, p_values, i, o_d, columns, D, BD, BN)  # [BN, BD]
            o_block = (i + tl.arange(0, BN)) // PER
            b_one = tl.load(p_one + o_block)  # [BN]
            b_two = tl.load(p_two + o_block)  # [BN]
            b_bias = tl.where(in_one[:, None], b_one[None, :], b_two[None, :]) * LOG2_E - b_less[:, None]  # [BM, BN]
            b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
            b_p = tl.exp2(b_s * (scale * LOG2_E) + b_bias)
            b_sum += tl.sum(b_p, 1)
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision=PRECISION)  # [BM, BD]
        one = tl.min(tl.where(b_block > two, b_block, rows), 0)
    b_base = tl.full([BM], 1.0, dtype=tl.float32)  # what the computed part weighs

    if tl.sum((b_sum < LIMIT).to(tl.int32), 0) < BM:
        b_acc = tl.zeros([BM, BD], dtype=tl.float32)
        b_sum = tl.zeros([BM], dtype=tl.float32)
        b_max = b_lse
        b_base = tl.where(b_lse == float("-inf"), 0.0, b_base)
        one = first
        while one < rows:
            mine = b_block == one
            for i in range(0, columns, BN):
                b_k, b_v = _mean_tile(p_keys, p_values, i, o_d, columns, D, BD, BN)  # [BN, BD]
                b_one = tl.load(p_bias + one * wide + (i + tl.arange(0, BN)) // PER)  # [BN]
                b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale + b_one[None, :]  # [BM, BN]
                b_top = tl.where(mine, tl.maximum(b_max, tl.max(b_s, 1)), b_max)  # [BM]
                b_zero = tl.where(b_top == float("-inf"), 0.0, b_top) * LOG2_E
                b_p = tl.exp2(b_s * LOG2_E - tl.where(mine, b_zero, float("inf"))[:, None])  # [BM, BN]
                b_alpha = tl.where(b_top == b_max, 1.0, tl.exp2(b_max * LOG2_E - b_zero))  # [BM]
                b_base = b_base * b_alpha
                b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
                b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
                b_max = b_top
            one = tl.min(tl.where(b_block > one, b_block, rows), 0)

    if HAS_SHIFT:
        b_shift = tl.load(p_shift + b_block[:, None] * D + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
        b_acc += b_shift * b_sum[:, None]
    b_out = tl.load(p_out + i_b * stride_ob + i_h * stride_oh + o_row[:, None] * stride_os + o_d[None, :], mask=in_q)
    b_whole = b_base + b_sum
    b_whole = tl.where(b_whole > 0, b_whole, 1.0)  # neither computed nor skipped: zeros stay
    b_new = (b_out.to(tl.float32) * b_base[:, None] + b_acc) / b_whole[:, None]
    p_bn = p_new + i_b * stride_nb + i_h * stride_nh + o_row[:, None] * stride_ns + o_d[None, :]
    tl.store(p_bn, b_new.to(p_new.dtype.element_ty), mask=in_q)


def triton_residual_attention(
    q: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, blocks, bias: torch.Tensor, means, scale: float
) -> torch.Tensor:
    """Launch the kernel. Args: as `residual.dispatch.residual_attention`, and its bias, -inf where blocks are kept."""
    batches, tokens, heads, dim = q.shape
    rows, columns = bias.shape[1], means.keys.shape[1]
    per = columns // bias.shape[2]
    q, out = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, out))
    new = torch.empty_like(out, memory_format=torch.contiguous_format)
    order = None if blocks.order is None else blocks.order.int().contiguous()
    at = runs_of_positions(blocks.offsets, tokens)
    # The means go through the tensor cores as the tokens do.
    keys, values = (x.to(q.dtype).contiguous() for x in (means.keys, means.values))
    tile = {"BM": 128, "BN": 64, "num_warps": 8, "num_stages": 3}
    if q.dtype == torch.float32:
        tile = {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 1}
    bias = F.pad(bias, (0, triton.cdiv(-columns % tile["BN"], per)), value=-torch.inf)
    _residual_attention[(triton.cdiv(tokens, tile["BM"]), batches * heads)](
        q, out, lse.contiguous(), keys, values, bias, bias if means.shift is None else means.shift,
        at, at if order is None else order, new,
        scale, tokens, heads, rows, columns, bias.shape[2],
        *q.stride()[:3], *out.stride()[:3], *new.stride()[:3], *lane_strides(at), *lane_strides(order),
        D=dim, BD=triton.next_power_of_2(dim), LIMIT=3e4 if q.dtype == torch.float16 else 1e30,
        PER=per, HAS_ORDER=order is not None, HAS_SHIFT=means.shift is not None,
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32", **tile,
    )  # fmt: skip
    return new


@triton.jit
def _anchor(
    p_anchor, p_k, p_v, p_order, p_table, p_count, p_keep, p_mass, p_lse, p_value,
    scale, heads, rows, columns,
    stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh, stride_pb, stride_ph,
    stride_tb, stride_th, stride_cb, stride_ch,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_ORDER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of anchors, splits, lanes). The split's keys stream past: an LSE of each block, and one output.

    After each tile of keys the LSE of its block is written, and only that of the block's last tile stays.
    """
    i_lane = tl.program_id(2).to(tl.int64)
    i_b = i_lane // heads
    i_h = i_lane % heads
    p_k += i_b * stride_kb + i_h * stride_kh
    p_v += i_b * stride_vb + i_h * stride_vh
    p_order += i_b * stride_pb + i_h * stride_ph
    p_table += i_b * stride_tb + i_h * stride_th
    begin, end = split_range(p_table, p_count + i_b * stride_cb + i_h * stride_ch)

    o_d = tl.arange(0, BD)
    o_n = tl.arange(0, BN)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    in_m = o_m < rows
    in_a = in_m[:, None] & (o_d[None, :] < D)
    o_a = (i_lane * rows + o_m[:, None]) * D + o_d[None, :]
    o_pair = (i_lane * rows + o_m) * columns  # [BM]
    b_a = tl.load(p_anchor + o_a, mask=in_a, other=0.0)  # [BM, BD]
    b_acc = tl.zeros([BM, BD], dtype=tl.float32)
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    b_top = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_mass = tl.zeros([BM], dtype=tl.float32)
    scale = scale * LOG2_E
    for t in range(begin, end):
        start, stop = tl.load(p_table + t * 4), tl.load(p_table + t * 4 + 1)
        block, earliest = tl.load(p_table + t * 4 + 2), tl.load(p_table + t * 4 + 3)
        b_kept = tl.load(p_keep + o_pair + block, mask=in_m, other=1) != 0  # [BM]
        o_position = start + o_n
        live = o_position < stop
        o_token = tokens_at(p_order, o_position, stop, HAS_ORDER, True)
        in_n = live[:, None] & (o_d[None, :] < D)
        b_k = tl.load(p_k + o_token[:, None] * stride_ks + o_d[None, :], mask=in_n, other=0.0)  # [BN, BD]
        b_v = tl.load(p_v + o_token[:, None] * stride_vs + o_d[None, :], mask=in_n, other=0.0)  # [BN, BD]
        b_s = tl.dot(b_a, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
        b_s = tl.where(live[None, :], b_s, float("-inf"))
        b_top = tl.where(t == earliest, float("-inf"), b_top)  # a new block: its maximum wipes the sum
        b_new = tl.maximum(b_top, tl.max(b_s, 1) * scale)  # at least one key lives: finite
        b_p = tl.exp2(b_s * scale - b_new[:, None])  # [BM, BN]
        b_here = tl.sum(b_p, 1)  # [BM]
        b_mass = b_mass * tl.exp2(b_top - b_new) + b_here
        b_top = b_new
        tl.store(p_mass + o_pair + block, (b_top + tl.log2(b_mass)) * LN_2, mask=in_m)
        # Into the output goes what is skipped, at the output's own maximum.
        b_high = tl.where(b_kept, b_max, tl.maximum(b_max, b_top))
        b_base = tl.where(b_high == float("-inf"), 0.0, b_high)
        b_factor = tl.where(b_kept, 0.0, tl.exp2(b_top - b_base))
        b_alpha = tl.exp2(b_max - b_base)
        b_sum = b_sum * b_alpha + b_here * b_factor
        b_p = (b_p * b_factor[:, None]).to(b_v.dtype)
        b_acc = tl.dot(b_p, b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
        b_max = b_high
    b_total = tl.where(b_sum > 0, b_sum, 1.0)
    o_part = tl.program_id(1) * tl.num_programs(2).to(tl.int64) * rows  # the split's rows of all lanes
    tl.store(p_lse + o_part + i_lane * rows + o_m, (b_max + tl.log2(b_total)) * LN_2, mask=in_m)
    tl.store(p_value + o_part * D + o_a, b_acc / b_total[:, None], mask=in_a)


def triton_calibrate_at_centroid(
    anchors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launch the kernel.

    Args:
        anchors: ``[lanes, Mq, D]`` in the dtype of k. k, v: ``[B, S, H, D]``.
        blocks: a `dittools.kernels.residual.dispatch.Blocks`.

    Returns:
        Fp32 ``[lanes, Mq, Nk]``, the LSE of each key block as the anchor sees it, -inf of an empty one. And for each
        part of the keys the LSE of what of it the query block skips, fp32 ``[parts, lanes, Mq]``, and the anchor's
        attention over that, fp32 ``[parts, lanes, Mq, D]``; -inf and 0 where that is nothing.
    """
    keys, heads, dim = k.shape[1:]
    lanes, rows, columns = blocks.keep.shape
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    order = None if blocks.key_order is None else blocks.key_order.int().contiguous()
    tile = _anchor_tile(k.dtype, rows, keys // columns)
    tiles = cut_runs(blocks.key_offsets, keys, tile["BN"])
    anchor_tiles = triton.cdiv(rows, tile["BM"])
    parts = splits(anchor_tiles * lanes, columns)
    mass = torch.full((lanes, rows, columns), -torch.inf, device=k.device)
    lse = torch.empty(parts, lanes, rows, device=k.device)
    value = torch.empty(parts, lanes, rows, dim, device=k.device)
    _anchor[(anchor_tiles, parts, lanes)](
        anchors.contiguous(), k, v, tiles.table if order is None else order, tiles.table, tiles.counts,
        blocks.keep.contiguous().view(torch.uint8), mass, lse, value, scale, heads, rows, columns,
        *k.stride()[:3], *v.stride()[:3], *lane_strides(order), *lane_strides(tiles.table),
        *lane_strides(tiles.counts),
        D=dim, BD=triton.next_power_of_2(dim), HAS_ORDER=order is not None,
        PRECISION="tf32x3" if k.dtype == torch.float32 else "tf32", **tile,
    )  # fmt: skip
    return mass, lse, value


def _anchor_tile(dtype: torch.dtype, rows: int, block: int) -> dict[str, int]:
    """Anchors and keys of a tile, for so many anchors and keys in an average block."""
    if dtype == torch.float32:
        return {"BM": 32, "BN": 32, "num_warps": 4, "num_stages": 1}
    # Tall tiles read keys half as often, where they do not stay half empty.
    if triton.cdiv(rows, 128) * 128 <= 1.1 * triton.cdiv(rows, 64) * 64:
        return {"BM": 128, "BN": 128 if block >= 112 else 64, "num_warps": 8, "num_stages": 3}
    return {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 3}
