"""Means of runs and of their unit vectors in Triton: a program a run, each row read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dittools.kernels.strides import lane_strides
from dittools.kernels.triton_parts import tokens_at


@triton.jit
def _intra_block_cosine_similarity(
    p_x, p_order, p_offset, p_mean, p_likeness, lanes, heads, runs,
    stride_xb, stride_xs, stride_xh, stride_pb, stride_ph, stride_fb, stride_fh,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, HAS_ORDER: tl.constexpr,
):  # fmt: skip
    """Grid: (runs x lanes), lanes fastest: in raster order, heads in flight share pages of memory."""
    i_lane = (tl.program_id(0) % lanes).to(tl.int64)
    i_run = tl.program_id(0) // lanes
    i_b, i_h = i_lane // heads, i_lane % heads
    p_offset += i_b * stride_fb + i_h * stride_fh
    p_order += i_b * stride_pb + i_h * stride_ph
    p_x += i_b * stride_xb + i_h * stride_xh
    first = tl.load(p_offset + i_run)
    stop = tl.load(p_offset + i_run + 1)
    o_d = tl.arange(0, BD)
    b_sum = tl.zeros([BS, BD], dtype=tl.float32)
    b_unit = tl.zeros([BS, BD], dtype=tl.float32)
    for i in range(first, stop, BS):
        o_position = i + tl.arange(0, BS)
        live = o_position < stop
        o_token = tokens_at(p_order, o_position, stop, HAS_ORDER, True)  # [BS]
        inside = live[:, None] & (o_d[None, :] < D)
        b_x = tl.load(p_x + o_token[:, None] * stride_xs + o_d[None, :], mask=inside, other=0.0).to(tl.float32)
        b_sum += b_x
        b_length = tl.sqrt(tl.sum(b_x * b_x, 1))  # [BS]
        b_unit += b_x / tl.maximum(b_length, 1e-12)[:, None]
    size = tl.maximum(stop - first, 1).to(tl.float32)
    i_out = i_lane * runs + i_run
    tl.store(p_mean + i_out * D + o_d, tl.sum(b_sum, 0) / size, mask=o_d < D)
    b_unit = tl.sum(b_unit, 0) / size  # [BD]
    tl.store(p_likeness + i_out, tl.sum(b_unit * b_unit, 0))


def triton_intra_block_cosine_similarity(
    x: torch.Tensor, order: torch.Tensor | None, offsets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel. Args and returns as `cosine_similarity.dispatch.intra_block_cosine_similarity`."""
    batches, _, heads, dim = x.shape
    x, order, offsets = (t if t is None or t.stride(-1) == 1 else t.contiguous() for t in (x, order, offsets))
    runs, lanes = offsets.shape[-1] - 1, batches * heads
    means = torch.empty(batches, heads, runs, dim, device=x.device)
    likeness = torch.empty(batches, heads, runs, device=x.device)
    _intra_block_cosine_similarity[(runs * lanes,)](
        x, offsets if order is None else order, offsets, means, likeness, lanes, heads, runs,
        *x.stride()[:3], *lane_strides(order), *lane_strides(offsets),
        D=dim, BD=triton.next_power_of_2(dim), BS=32, HAS_ORDER=order is not None, num_warps=4,
    )  # fmt: skip
    return means, likeness
