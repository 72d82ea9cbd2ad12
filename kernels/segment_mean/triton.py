"""Means of runs in Triton: a program a run, and before it one for each long stretch that lies inside a run.

A run is a loop over its rows. So that a very long one is no long loop, the positions are also cut into chunks of one
size: those that lie inside one run whole are summed side by side, and the run's program adds their sums to its ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from dittools.kernels.capability import MAX_TENSORS
from dittools.kernels.strides import lane_strides
from dittools.kernels.triton_parts import tokens_at

CHUNK = 1024  # positions: no program has more than two of them in its loop
SEARCH = 1024  # offsets looked at together


@triton.jit
def _add_rows(b_sum, p_x, o_token, o_d, live, stride_xs, D: tl.constexpr):
    b_x = tl.load(p_x + o_token[:, None] * stride_xs + o_d[None, :], mask=live[:, None] & (o_d[None, :] < D), other=0.0)
    return b_sum + b_x.to(tl.float32)  # [BS, BD]


@triton.jit
def _add_run(
    b_x, b_y, b_z, p_x, p_y, p_z, p_order, first, stop, stride_xs, stride_ys, stride_zs,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, TENSORS: tl.constexpr, HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """Add the rows at positions ``first .. stop``, column by column of the sums."""
    o_d = tl.arange(0, BD)
    for i in range(first, stop, BS):
        o_position = i + tl.arange(0, BS)
        live = o_position < stop
        o_token = tokens_at(p_order, o_position, stop, HAS_ORDER, True)  # [BS]
        b_x = _add_rows(b_x, p_x, o_token, o_d, live, stride_xs, D)
        if TENSORS > 1:
            b_y = _add_rows(b_y, p_y, o_token, o_d, live, stride_ys, D)
        if TENSORS > 2:
            b_z = _add_rows(b_z, p_z, o_token, o_d, live, stride_zs, D)
    return b_x, b_y, b_z


@triton.jit
def _chunk_sums(
    p_x, p_y, p_z, p_order, p_offset, p_part, lanes, heads, runs, chunks,
    stride_xb, stride_xs, stride_xh, stride_yb, stride_ys, stride_yh, stride_zb, stride_zs, stride_zh,
    stride_pb, stride_ph, stride_fb, stride_fh,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, CHUNK: tl.constexpr, SEARCH: tl.constexpr,
    TENSORS: tl.constexpr, HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """Grid: (chunks x lanes). The sum of a chunk in which no run begins or ends; of others nothing is written."""
    i_lane = (tl.program_id(0) % lanes).to(tl.int64)
    i_chunk = tl.program_id(0) // lanes
    i_b, i_h = i_lane // heads, i_lane % heads
    p_offset += i_b * stride_fb + i_h * stride_fh
    first = i_chunk * CHUNK
    stop = first + CHUNK
    edges = 0
    for i in range(0, runs + 1, SEARCH):
        o_run = i + tl.arange(0, SEARCH)
        b_edge = tl.load(p_offset + o_run, mask=o_run <= runs, other=0)  # [SEARCH]
        edges += tl.sum(((b_edge > first) & (b_edge < stop)).to(tl.int32), 0)
    if edges == 0:
        p_x += i_b * stride_xb + i_h * stride_xh
        p_y += i_b * stride_yb + i_h * stride_yh
        p_z += i_b * stride_zb + i_h * stride_zh
        b_x = tl.zeros([BS, BD], dtype=tl.float32)
        b_y = tl.zeros([BS, BD], dtype=tl.float32)
        b_z = tl.zeros([BS, BD], dtype=tl.float32)
        b_x, b_y, b_z = _add_run(
            b_x, b_y, b_z, p_x, p_y, p_z, p_order + i_b * stride_pb + i_h * stride_ph, first, stop,
            stride_xs, stride_ys, stride_zs, D, BD, BS, TENSORS, HAS_ORDER,
        )  # fmt: skip
        o_d = tl.arange(0, BD)
        p_sum = p_part + (i_lane * chunks + i_chunk) * TENSORS * D + o_d
        tl.store(p_sum, tl.sum(b_x, 0), mask=o_d < D)
        if TENSORS > 1:
            tl.store(p_sum + D, tl.sum(b_y, 0), mask=o_d < D)
        if TENSORS > 2:
            tl.store(p_sum + 2 * D, tl.sum(b_z, 0), mask=o_d < D)


@triton.jit
def _segment_means(
    p_x, p_y, p_z, p_order, p_offset, p_part, p_mean, lanes, heads, runs, chunks,
    stride_xb, stride_xs, stride_xh, stride_yb, stride_ys, stride_yh, stride_zb, stride_zs, stride_zh,
    stride_pb, stride_ph, stride_fb, stride_fh,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, CHUNK: tl.constexpr,
    TENSORS: tl.constexpr, HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """Grid: (runs x lanes), lanes fastest: in raster order, heads in flight share pages of memory."""
    i_lane = (tl.program_id(0) % lanes).to(tl.int64)
    i_run = tl.program_id(0) // lanes
    i_b, i_h = i_lane // heads, i_lane % heads
    p_offset += i_b * stride_fb + i_h * stride_fh
    p_order += i_b * stride_pb + i_h * stride_ph
    p_x += i_b * stride_xb + i_h * stride_xh
    p_y += i_b * stride_yb + i_h * stride_yh
    p_z += i_b * stride_zb + i_h * stride_zh
    first = tl.load(p_offset + i_run)
    stop = tl.load(p_offset + i_run + 1)
    from_chunk = tl.cdiv(first, CHUNK)
    to_chunk = stop // CHUNK
    has_chunks = to_chunk > from_chunk

    b_x = tl.zeros([BS, BD], dtype=tl.float32)
    b_y = tl.zeros([BS, BD], dtype=tl.float32)
    b_z = tl.zeros([BS, BD], dtype=tl.float32)
    head = tl.where(has_chunks, from_chunk * CHUNK, stop)
    b_x, b_y, b_z = _add_run(
        b_x, b_y, b_z, p_x, p_y, p_z, p_order, first, head, stride_xs, stride_ys, stride_zs,
        D, BD, BS, TENSORS, HAS_ORDER,
    )  # fmt: skip
    if has_chunks:
        b_x, b_y, b_z = _add_run(
            b_x, b_y, b_z, p_x, p_y, p_z, p_order, to_chunk * CHUNK, stop, stride_xs, stride_ys, stride_zs,
            D, BD, BS, TENSORS, HAS_ORDER,
        )  # fmt: skip
        p_part += i_lane * chunks * TENSORS * D
        o_d = tl.arange(0, BD)
        for i in range(from_chunk, to_chunk, BS):
            o_chunk = (i + tl.arange(0, BS)).to(tl.int64)
            live = o_chunk < to_chunk
            b_x = _add_rows(b_x, p_part, o_chunk, o_d, live, TENSORS * D, D)
            if TENSORS > 1:
                b_y = _add_rows(b_y, p_part + D, o_chunk, o_d, live, TENSORS * D, D)
            if TENSORS > 2:
                b_z = _add_rows(b_z, p_part + 2 * D, o_chunk, o_d, live, TENSORS * D, D)

    o_d = tl.arange(0, BD)
    size = tl.maximum(stop - first, 1).to(tl.float32)
    p_bm = p_mean + (i_lane * runs + i_run) * D + o_d
    tl.store(p_bm, tl.sum(b_x, 0) / size, mask=o_d < D)
    each = tl.num_programs(0).to(tl.int64) * D  # between the means of two tensors
    if TENSORS > 1:
        tl.store(p_bm + each, tl.sum(b_y, 0) / size, mask=o_d < D)
    if TENSORS > 2:
        tl.store(p_bm + 2 * each, tl.sum(b_z, 0) / size, mask=o_d < D)


def triton_segment_means(
    tensors: Sequence[torch.Tensor], order: torch.Tensor | None, offsets: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Launch the kernels. Args and returns as `dittools.kernels.segment_means`, already validated."""
    batches, tokens, heads, dim = tensors[0].shape
    tensors = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    count, runs, lanes, chunks = len(tensors), offsets.shape[-1] - 1, batches * heads, tokens // CHUNK
    if order is not None and order.stride(-1) != 1:
        order = order.contiguous()
    if offsets.stride(-1) != 1:
        offsets = offsets.contiguous()
    means = torch.empty(count, batches, heads, runs, dim, device=offsets.device)
    part = torch.empty(lanes, max(1, chunks), count, dim, device=offsets.device)
    padded = [*tensors, *tensors[:1] * (MAX_TENSORS - count)]
    inputs = (*padded, offsets if order is None else order, offsets, part)
    strides = (*(s for x in padded for s in x.stride()[:3]), *lane_strides(order), *lane_strides(offsets))
    call = {
        "D": dim, "BD": triton.next_power_of_2(dim), "BS": 16 if count == 3 else 32, "CHUNK": CHUNK,
        "TENSORS": count, "HAS_ORDER": order is not None, "num_warps": 4,
    }  # fmt: skip
    if chunks:
        _chunk_sums[(chunks * lanes,)](*inputs, lanes, heads, runs, chunks, *strides, SEARCH=SEARCH, **call)
    _segment_means[(runs * lanes,)](*inputs, means, lanes, heads, runs, chunks, *strides, **call)
    return means.unbind()
