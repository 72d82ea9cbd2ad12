"""Errors of mean keys and values in Triton: numbers of each key once, then all keys past each tile of queries.

No pass for the LSE is needed before: what a run adds is first written relative to the run's own softmax sum. From the
LSE of each run follows its share of all keys, and the square of that share is the factor that is missing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dittools.kernels.segment_mean.tiles import cut_runs, splits
from dittools.kernels.segment_mean.triton import triton_segment_means
from dittools.kernels.strides import lane_strides
from dittools.kernels.triton_parts import LN_2, LOG2_E, tokens_at


@triton.jit
def split_range(p_table, p_count):
    """The tiles of this program's split, axis 1 of the grid: about equally many in each, and no run torn."""
    i_split, count = tl.program_id(1), tl.num_programs(1)
    tiles = tl.load(p_count)
    begin = tl.load(p_table + (tiles * i_split // count) * 4 + 3)
    end = tiles
    if i_split + 1 < count:
        end = tl.load(p_table + (tiles * (i_split + 1) // count) * 4 + 3)
    return begin, end


@triton.jit
def _key_numbers(
    p_v, p_order, p_mean, p_table, p_norm, p_across, keys, heads, runs, tiles,
    stride_vb, stride_vs, stride_vh, stride_pb, stride_ph, stride_tb, stride_th,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of keys, lanes). |v|^2 and v . u of every key, by position."""
    i_lane = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_lane // heads, i_lane % heads
    p_tile = p_table + i_b * stride_tb + i_h * stride_th + tl.program_id(0) * 4
    start, stop, run = tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 2)
    if start < stop:
        o_d = tl.arange(0, BD)
        o_position = start + tl.arange(0, BN)
        live = o_position < stop
        o_token = tokens_at(p_order + i_b * stride_pb + i_h * stride_ph, o_position, stop, HAS_ORDER, True)
        p_bv = p_v + i_b * stride_vb + i_h * stride_vh + o_token[:, None] * stride_vs + o_d[None, :]
        b_v = tl.load(p_bv, mask=live[:, None] & (o_d[None, :] < D), other=0.0).to(tl.float32)  # [BN, BD]
        b_u = tl.load(p_mean + (i_lane * runs + run) * D + o_d, mask=o_d < D, other=0.0)  # [BD]
        o_out = i_lane * keys + o_position
        tl.store(p_norm + o_out, tl.sum(b_v * b_v, 1), mask=live)
        tl.store(p_across + o_out, tl.sum(b_v * b_u[None, :], 1), mask=live)


@triton.jit
def _block_approximation_error(
    p_q, p_k, p_order, p_table, p_count, p_norm, p_across, p_far, p_lse, p_error,
    scale, keys, heads, rows, runs,
    stride_kb, stride_ks, stride_kh, stride_pb, stride_ph, stride_tb, stride_th, stride_cb, stride_ch,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_ORDER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of queries, splits, lanes). Writes the LSE of each run, and its error where that LSE is the total.

    After each tile of keys the two of its run are written, and only those of its last tile stay.
    """
    i_lane = tl.program_id(2).to(tl.int64)
    i_b, i_h = i_lane // heads, i_lane % heads
    p_k += i_b * stride_kb + i_h * stride_kh
    p_order += i_b * stride_pb + i_h * stride_ph
    p_table += i_b * stride_tb + i_h * stride_th
    p_norm += i_lane * keys
    p_across += i_lane * keys
    p_far += i_lane * runs
    begin, end = split_range(p_table, p_count + i_b * stride_cb + i_h * stride_ch)

    o_d = tl.arange(0, BD)
    o_n = tl.arange(0, BN)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    in_m = o_m < rows
    in_q = in_m[:, None] & (o_d[None, :] < D)
    b_q = tl.load(p_q + (i_lane * rows + o_m[:, None]) * D + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
    o_pair = (i_lane * rows + o_m) * runs  # [BM]
    scale = scale * LOG2_E
    b_top = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_mass = tl.zeros([BM], dtype=tl.float32)  # sum of w, all relative to the maximum of the run so far
    b_own = tl.zeros([BM], dtype=tl.float32)  # sum of w^2 |v|^2
    b_shared = tl.zeros([BM], dtype=tl.float32)  # sum of w (v . u)
    b_logits = tl.zeros([BM], dtype=tl.float32)
    for t in range(begin, end):
        start, stop = tl.load(p_table + t * 4), tl.load(p_table + t * 4 + 1)
        run, earliest = tl.load(p_table + t * 4 + 2), tl.load(p_table + t * 4 + 3)
        o_position = start + o_n
        live = o_position < stop
        o_token = tokens_at(p_order, o_position, stop, HAS_ORDER, True)
        in_k = live[:, None] & (o_d[None, :] < D)
        b_k = tl.load(p_k + o_token[:, None] * stride_ks + o_d[None, :], mask=in_k, other=0.0)  # [BN, BD]
        b_norm = tl.load(p_norm + o_position, mask=live, other=0.0)  # [BN]
        b_across = tl.load(p_across + o_position, mask=live, other=0.0)  # [BN]
        far = tl.load(p_far + run)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
        # A new run starts from a maximum of -inf, which wipes the sums; the sum of logits knows no maximum.
        b_top = tl.where(t == earliest, float("-inf"), b_top)
        b_logits = tl.where(t == earliest, 0.0, b_logits) + tl.sum(b_s, 1)  # dead keys are 0 here
        b_s = tl.where(live[None, :], b_s, float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_s, 1) * scale)  # at least one key lives: finite
        b_w = tl.exp2(b_s * scale - b_new[:, None])  # [BM, BN]
        b_alpha = tl.exp2(b_top - b_new)
        b_top = b_new
        b_mass = b_mass * b_alpha + tl.sum(b_w, 1)
        b_own = b_own * b_alpha * b_alpha + tl.sum(b_w * b_w * b_norm[None, :], 1)
        b_shared = b_shared * b_alpha + tl.sum(b_w * b_across[None, :], 1)
        b_lse = b_top + tl.log2(b_mass)
        size = (stop - start + (t - earliest) * BN).to(tl.float32)
        b_whole = tl.exp2(b_logits * scale / size - b_lse)  # at most 1 / size
        b_error = (b_own / b_mass - 2 * b_whole * b_shared) / b_mass + b_whole * b_whole * far
        tl.store(p_lse + o_pair + run, b_lse * LN_2, mask=in_m)
        tl.store(p_error + o_pair + run, tl.maximum(b_error, 0.0), mask=in_m)


def triton_block_approximation_error(queries, k, v, order, offsets, scale: float) -> torch.Tensor:
    """Launch the kernels. Args and returns: as `dittools.kernels.residual.error.block_approximation_error`."""
    batches, heads, rows, dim = queries.shape
    keys, lanes, runs = k.shape[1], batches * heads, offsets.shape[-1] - 1
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    order = None if order is None else order.int().contiguous()
    full = k.dtype == torch.float32
    tile = {"BM": 32, "BN": 32, "num_stages": 1} if full else {"BM": 64, "BN": 64, "num_stages": 4}
    tiles = cut_runs(offsets, keys, tile["BN"])
    (means,) = triton_segment_means((v,), order, offsets)
    norm, across = torch.empty(2, lanes, keys, device=k.device)
    call = {"D": dim, "BD": triton.next_power_of_2(dim), "HAS_ORDER": order is not None, "num_warps": 4}
    ordered = (tiles.table if order is None else order, lane_strides(order))
    _key_numbers[(tiles.table.shape[-2], lanes)](
        v, ordered[0], means, tiles.table, norm, across, keys, heads, runs, tiles.table.shape[-2],
        *v.stride()[:3], *ordered[1], *lane_strides(tiles.table), BN=tile["BN"], **call,
    )  # fmt: skip
    far = means.square().sum(-1) * offsets.diff(dim=-1)  # [B, H, N]
    lse = torch.full((batches, heads, rows, runs), -torch.inf, device=k.device)
    error = torch.zeros(batches, heads, rows, runs, device=k.device)
    query_tiles = triton.cdiv(rows, tile["BM"])
    _block_approximation_error[(query_tiles, splits(query_tiles * lanes, runs), lanes)](
        queries.to(k.dtype).contiguous(), k, ordered[0], tiles.table, tiles.counts, norm, across, far, lse, error,
        scale, keys, heads, rows, runs,
        *k.stride()[:3], *ordered[1], *lane_strides(tiles.table), *lane_strides(tiles.counts),
        PRECISION="tf32x3" if full else "tf32", **tile, **call,
    )  # fmt: skip
    share = lse.softmax(-1)
    return error.mul_(share).mul_(share)
