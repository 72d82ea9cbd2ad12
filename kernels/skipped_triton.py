"""Means of skipped blocks in Triton: set right at anchors in a pass over all keys, merged in a pass over queries.

Merging is a short attention whose bias belongs to the query block of the row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dittools.kernels.triton_block_sparse import LN_2, LOG2_E, _lane_strides, _tokens


@triton.jit
def _add_skipped(
    p_q, p_out, p_lse, p_keys, p_values, p_bias, p_shift, p_label, p_order, p_new,
    scale, tokens, heads, rows, columns,
    stride_qb, stride_qs, stride_qh, stride_ob, stride_os, stride_oh, stride_nb, stride_ns, stride_nh,
    stride_pb, stride_ph,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_ORDER: tl.constexpr, HAS_SHIFT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of positions, lanes). Rows of one tile mostly share a query block, and so a row of the bias."""
    i_lane = tl.program_id(1).to(tl.int64)
    i_b = i_lane // heads
    i_h = i_lane % heads
    p_order += i_b * stride_pb + i_h * stride_ph
    p_keys += i_lane * columns * D
    p_values += i_lane * columns * D
    p_bias += i_lane * rows * columns
    p_shift += i_lane * rows * D

    o_d = tl.arange(0, BD)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    in_m = o_m < tokens
    o_row = _tokens(p_order, o_m, tokens, HAS_ORDER, True)
    b_label = tl.load(p_label + i_lane * tokens + o_row, mask=in_m, other=0)  # [BM]
    in_q = in_m[:, None] & (o_d[None, :] < D)
    p_bq = p_q + i_b * stride_qb + i_h * stride_qh + o_row[:, None] * stride_qs + o_d[None, :]
    b_q = tl.load(p_bq, mask=in_q, other=0.0)  # [BM, BD]

    b_acc = tl.zeros([BM, BD], dtype=tl.float32)
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    for i in range(0, columns, BN):
        o_n = i + tl.arange(0, BN)
        in_n = (o_n[:, None] < columns) & (o_d[None, :] < D)
        o_key = o_n[:, None] * D + o_d[None, :]
        b_k = tl.load(p_keys + o_key, mask=in_n, other=0.0)  # [BN, BD]
        b_v = tl.load(p_values + o_key, mask=in_n, other=0.0)  # [BN, BD]
        p_bb = p_bias + b_label[:, None] * columns + o_n[None, :]
        b_bias = tl.load(p_bb, mask=o_n[None, :] < columns, other=float("-inf"))  # [BM, BN]
        b_s = (tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION) * scale + b_bias) * LOG2_E  # [BM, BN]
        b_top = tl.maximum(b_max, tl.max(b_s, 1))  # [BM]
        b_base = tl.where(b_top == float("-inf"), 0.0, b_top)
        b_p = tl.exp2(b_s - b_base[:, None])  # [BM, BN]
        b_alpha = tl.exp2(b_max - b_base)  # [BM]
        b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)  # [BM, BD]
        b_max = b_top

    b_total = tl.where(b_sum > 0, b_sum, 1.0)
    b_extra = b_acc / b_total[:, None]  # [BM, BD]
    if HAS_SHIFT:
        b_extra += tl.load(p_shift + b_label[:, None] * D + o_d[None, :], mask=in_q, other=0.0)
    b_own = (b_max + tl.log2(b_total)) * LN_2  # [BM]
    b_lse = tl.load(p_lse + i_lane * tokens + o_row, mask=in_m, other=0.0)
    b_share = tl.where(b_sum > 0, 1 / (1 + tl.exp(b_lse - b_own)), 0.0)[:, None]
    b_out = tl.load(p_out + i_b * stride_ob + i_h * stride_oh + o_row[:, None] * stride_os + o_d[None, :], mask=in_q)
    b_new = b_out.to(tl.float32) * (1 - b_share) + b_extra * b_share
    p_bn = p_new + i_b * stride_nb + i_h * stride_nh + o_row[:, None] * stride_ns + o_d[None, :]
    tl.store(p_bn, b_new.to(p_new.dtype.element_ty), mask=in_q)


def triton_add_skipped(
    q: torch.Tensor, out: torch.Tensor, lse: torch.Tensor, blocks, bias: torch.Tensor, means, scale: float
) -> torch.Tensor:
    """Launch the kernel. Args: as `dittools.kernels.skipped.add_skipped`, and its bias, -inf where blocks are kept."""
    batches, tokens, heads, dim = q.shape
    q, out = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, out))
    new = torch.empty_like(out, memory_format=torch.contiguous_format)
    order = None if blocks.order is None else blocks.order.int().contiguous()
    # The means go through the tensor cores as the tokens do.
    keys, values = (x.to(q.dtype).contiguous() for x in (means.keys, means.values))
    tile = {"BM": 128, "BN": 64, "num_warps": 8, "num_stages": 2}
    if q.dtype == torch.float32:
        tile = {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 1}
    _add_skipped[(triton.cdiv(tokens, tile["BM"]), batches * heads)](
        q, out, lse.contiguous(), keys, values, bias.contiguous(), bias if means.shift is None else means.shift,
        blocks.rows.contiguous(), blocks.rows if order is None else order, new,
        scale, tokens, heads, bias.shape[1], bias.shape[2],
        *q.stride()[:3], *out.stride()[:3], *new.stride()[:3], *_lane_strides(order),
        D=dim, BD=triton.next_power_of_2(dim), HAS_ORDER=order is not None, HAS_SHIFT=means.shift is not None,
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32", **tile,
    )  # fmt: skip
    return new


@triton.jit
def _anchor(
    p_anchor, p_k, p_v, p_order, p_offset, p_keep, p_mass, p_value,
    scale, keys, heads, rows, columns,
    stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh, stride_pb, stride_ph, stride_fb, stride_fh,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    HAS_ORDER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of anchors, lanes). All keys stream past, block by block: an LSE of each block, and one output."""
    i_lane = tl.program_id(1).to(tl.int64)
    i_b = i_lane // heads
    i_h = i_lane % heads
    p_k += i_b * stride_kb + i_h * stride_kh
    p_v += i_b * stride_vb + i_h * stride_vh
    p_order += i_b * stride_pb + i_h * stride_ph
    p_offset += i_b * stride_fb + i_h * stride_fh

    o_d = tl.arange(0, BD)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    in_m = o_m < rows
    in_a = in_m[:, None] & (o_d[None, :] < D)
    o_a = (i_lane * rows + o_m[:, None]) * D + o_d[None, :]
    o_pair = (i_lane * rows + o_m) * columns  # [BM]
    b_a = tl.load(p_anchor + o_a, mask=in_a, other=0.0)  # [BM, BD]
    b_acc = tl.zeros([BM, BD], dtype=tl.float32)
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    scale = scale * LOG2_E
    for n in range(0, columns):
        first = tl.load(p_offset + n)
        stop = tl.load(p_offset + n + 1)
        b_kept = tl.load(p_keep + o_pair + n, mask=in_m, other=1) != 0  # [BM]
        b_top = tl.full([BM], float("-inf"), dtype=tl.float32)
        b_mass = tl.zeros([BM], dtype=tl.float32)
        for i in range(first, stop, BN):
            o_position = i + tl.arange(0, BN)
            live = o_position < stop
            o_token = _tokens(p_order, o_position, stop, HAS_ORDER, True)
            in_n = live[:, None] & (o_d[None, :] < D)
            b_k = tl.load(p_k + o_token[:, None] * stride_ks + o_d[None, :], mask=in_n, other=0.0)  # [BN, BD]
            b_v = tl.load(p_v + o_token[:, None] * stride_vs + o_d[None, :], mask=in_n, other=0.0)  # [BN, BD]
            b_s = tl.dot(b_a, tl.trans(b_k), input_precision=PRECISION) * scale  # [BM, BN]
            b_s = tl.where(live[None, :], b_s, float("-inf"))
            b_new = tl.maximum(b_top, tl.max(b_s, 1))  # at least one key lives: finite
            b_p = tl.exp2(b_s - b_new[:, None])  # [BM, BN]
            b_mass = b_mass * tl.exp2(b_top - b_new) + tl.sum(b_p, 1)
            b_top = b_new
            # Into the output goes what is skipped, at the output's own maximum.
            b_high = tl.where(b_kept, b_max, tl.maximum(b_max, b_top))
            b_base = tl.where(b_high == float("-inf"), 0.0, b_high)
            b_p = b_p * tl.where(b_kept, 0.0, tl.exp2(b_top - b_base))[:, None]
            b_alpha = tl.exp2(b_max - b_base)
            b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
            b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_alpha[:, None], input_precision=PRECISION)
            b_max = b_high
        b_lse = (b_top + tl.log2(tl.where(b_mass > 0, b_mass, 1.0))) * LN_2  # an empty block: -inf
        tl.store(p_mass + o_pair + n, b_lse, mask=in_m)
    b_value = b_acc / tl.where(b_sum > 0, b_sum, 1.0)[:, None]
    tl.store(p_value + o_a, b_value, mask=in_a)


def triton_anchor(
    anchors: torch.Tensor, k: torch.Tensor, v: torch.Tensor, blocks, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel.

    Args:
        anchors: ``[lanes, Mq, D]`` in the dtype of k. k, v: ``[B, S, H, D]``.
        blocks: a `dittools.kernels.skipped.Blocks`.

    Returns:
        Fp32 ``[lanes, Mq, Nk]``, the LSE of each key block as the anchor sees it, and fp32 ``[lanes, Mq, D]``, the
        anchor's attention over what its query block skips (0 where that is nothing).
    """
    keys, heads, dim = k.shape[1:]
    lanes, rows, columns = blocks.keep.shape
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    order = None if blocks.key_order is None else blocks.key_order.int().contiguous()
    offsets = blocks.key_offsets.contiguous()
    mass = torch.empty(lanes, rows, columns, device=k.device)
    value = torch.empty(lanes, rows, dim, device=k.device)
    tile = {"BM": 64, "BN": 64, "num_warps": 4, "num_stages": 2}
    if k.dtype == torch.float32:
        tile = {"BM": 32, "BN": 32, "num_warps": 4, "num_stages": 1}
    _anchor[(triton.cdiv(rows, tile["BM"]), lanes)](
        anchors.contiguous(), k, v, offsets if order is None else order, offsets,
        blocks.keep.contiguous().view(torch.uint8), mass, value, scale, keys, heads, rows, columns,
        *k.stride()[:3], *v.stride()[:3], *_lane_strides(order), *_lane_strides(offsets),
        D=dim, BD=triton.next_power_of_2(dim), HAS_ORDER=order is not None,
        PRECISION="tf32x3" if k.dtype == torch.float32 else "tf32", **tile,
    )  # fmt: skip
    return mass, value
