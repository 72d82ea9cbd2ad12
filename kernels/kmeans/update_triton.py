"""The update of a k-means iteration in Triton: means of clusters, whose points are runs of an order.

The order is cut into stretches of one size, whatever clusters lie in them: each program has all its rows in flight at
once, none is longer than another, and each point is read once. A cluster inside a stretch is done with there. Of one
that goes on, the sum goes into one of two places of the stretch, and a second launch adds these up: no atomics, one
fixed order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dittools.kernels.kmeans.triton import lanes_of

GROUP = tl.constexpr(16)  # clusters whose sums are one product: the rows of the smallest tile of the tensor cores
SIZES = tl.constexpr(1 << 12)  # more than a stretch has positions; labels are less than the rest of 31 bits
PARTS = 8  # sums added at a time


@dataclass(frozen=True)
class Variant:
    """Positions of a stretch, warps of its program, and registers of a thread at most."""

    positions: int = 128
    warps: int = 4
    registers: int | None = None


@triton.jit
def _keep_sums(
    p_part, p_mean, b_sum, b_cluster, b_size, before, after, keep, i_n, i_t, clusters, D: tl.constexpr, BD: tl.constexpr
):
    """Store sums ``[G, BD]`` of clusters ``[G]`` where these belong: means of what lies inside the stretch."""
    o_d = tl.arange(0, BD)
    begins = b_cluster != before
    whole = begins & (b_cluster != after)
    inside = keep[:, None] & (o_d[None, :] < D)
    p_sum = p_part + ((i_n * tl.num_programs(0) + i_t) * 2 + begins.to(tl.int32)) * D
    tl.store(p_sum[:, None] + o_d[None, :], b_sum, mask=inside & ~whole[:, None])
    b_mean = b_sum / tl.maximum(b_size, 1).to(tl.float32)[:, None]
    tl.store(p_mean + (i_n * clusters + b_cluster)[:, None] * D + o_d[None, :], b_mean, mask=inside & whole[:, None])


@triton.jit
def _sum_stretches(
    p_x, p_order, p_label, p_part, p_mean, points, clusters, inner,
    stride_xo, stride_xn, stride_xs, stride_xd,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (stretches, N). Means of the clusters that lie inside a stretch, and sums of those that go on.

    The first clusters of a stretch, most often all of them, are summed by one product with ones and zeros. More are
    summed one by one, and so are all of a stretch where something is not finite: a product would spread it.
    """
    i_t = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64)
    o_s = i_t * BS + tl.arange(0, BS)
    o_d = tl.arange(0, BD)
    o_g = tl.arange(0, GROUP)
    start = i_t * BS
    stop = tl.minimum(start + BS, points)
    live = o_s < points
    p_order += i_n * points
    p_label += i_n * points
    p_x += i_n // inner * stride_xo + i_n % inner * stride_xn
    b_token = tl.load(p_order + o_s, mask=live, other=0)  # [BS]
    inside = live[:, None] & (o_d[None, :] < D)
    p_bx = p_x + b_token[:, None].to(tl.int64) * stride_xs + o_d[None, :] * stride_xd
    b_x = tl.load(p_bx, mask=inside, other=0.0)  # [BS, BD]
    b_label = tl.load(p_label + b_token, mask=live, other=0)  # [BS]
    b_token = tl.load(p_order + o_s - 1, mask=live & (o_s > start), other=0)
    b_before = tl.load(p_label + b_token, mask=live & (o_s > start), other=-1)  # [BS]
    # Labels in front of the stretch and behind it.
    before = tl.load(p_label + tl.load(p_order + start - 1, mask=start > 0, other=0), mask=start > 0, other=-1)
    after = tl.load(p_label + tl.load(p_order + stop, mask=stop < points, other=0), mask=stop < points, other=-1)
    b_new = live & (b_label != b_before)  # [BS]
    b_number = tl.where(live, tl.cumsum(b_new.to(tl.int32), 0) - 1, -1)  # [BS], of each position's cluster here

    b_mine = o_g[:, None] == b_number[None, :]  # [GROUP, BS]
    b_sum = tl.dot(b_mine.to(tl.float32).to(b_x.dtype), b_x, input_precision=PRECISION)  # [GROUP, BD]
    # What is added up for a cluster is its size, and its label once.
    b_facts = tl.sum(tl.where(b_mine, 1 + tl.where(b_new, b_label, 0)[None, :] * SIZES, 0), 1)  # [GROUP]
    fine = tl.max(tl.max((b_sum != b_sum).to(tl.int32), 1), 0) == 0
    b_size = b_facts % SIZES
    keep = (b_size > 0) & fine
    _keep_sums(p_part, p_mean, b_sum, b_facts // SIZES, b_size, before, after, keep, i_n, i_t, clusters, D, BD)

    for i in range(tl.where(fine, GROUP, 0), tl.max(b_number, 0) + 1):
        own = b_number == i
        # Read again: rows and labels kept for this rare case would take registers from all.
        b_again = tl.load(p_order + o_s, mask=own, other=0)
        p_row = p_x + b_again[:, None].to(tl.int64) * stride_xs + o_d[None, :] * stride_xd
        b_row = tl.load(p_row, mask=own[:, None] & (o_d[None, :] < D), other=0.0)
        b_one = tl.sum(b_row.to(tl.float32), 0)[None, :]  # [1, BD]
        b_its = tl.max(tl.load(p_label + b_again, mask=own, other=-1), 0) + tl.zeros([1], dtype=tl.int32)
        b_many = tl.sum(own.to(tl.int32), 0) + tl.zeros([1], dtype=tl.int32)
        _keep_sums(p_part, p_mean, b_one, b_its, b_many, before, after, b_many > 0, i_n, i_t, clusters, D, BD)


@triton.jit
def _join_stretches(
    p_part, p_offset, p_old, p_mean, clusters, stretches,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Grid: (C, N). The mean of a cluster that goes over more than one stretch; an empty one keeps what it was."""
    i_c = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64)
    first = tl.load(p_offset + i_n * (clusters + 1) + i_c)
    stop = tl.load(p_offset + i_n * (clusters + 1) + i_c + 1)
    o_d = tl.arange(0, BD)
    o_out = (i_n * clusters + i_c) * D + o_d
    from_t = first // BS
    to_t = (stop - 1) // BS
    if stop == first:
        tl.store(p_mean + o_out, tl.load(p_old + o_out, mask=o_d < D), mask=o_d < D)
    elif to_t > from_t:
        b_sum = tl.zeros([BT, BD], dtype=tl.float32)
        for i in range(from_t, to_t + 1, BT):
            o_t = i + tl.arange(0, BT)
            inside = (o_t <= to_t)[:, None] & (o_d[None, :] < D)
            o_part = (i_n * stretches + o_t) * 2 + (o_t == from_t).to(tl.int32)
            b_sum += tl.load(p_part + o_part[:, None] * D + o_d[None, :], mask=inside, other=0.0)  # [BT, BD]
        tl.store(p_mean + o_out, tl.sum(b_sum, 0) / (stop - first).to(tl.float32), mask=o_d < D)


def triton_update(x, labels, order, offsets, centroids, variant: Variant | None = None) -> torch.Tensor:
    """Launch the update: means of points x ``[N, S, D]`` or ``[B, H, S, D]`` by label, fp32 ``[N, C, D]``.

    Labels, and order and offsets from `sort_by_label` of them, are contiguous, as are the centroids, which empty
    clusters keep.
    """
    lanes, points, dim, strides = lanes_of(x)
    clusters = centroids.shape[1]
    v = variant or Variant()
    stretches = triton.cdiv(points, v.positions)
    means = torch.empty_like(centroids)
    part = torch.empty(lanes, stretches, 2, dim, dtype=torch.float32, device=x.device)
    _sum_stretches[(stretches, lanes)](
        x, order, labels, part, means, points, clusters, *strides,
        D=dim, BD=max(16, triton.next_power_of_2(dim)), BS=v.positions,
        PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32", num_warps=v.warps,
        maxnreg=v.registers,
    )  # fmt: skip
    _join_stretches[(clusters, lanes)](
        part, offsets, centroids, means, clusters, stretches,
        D=dim, BD=triton.next_power_of_2(dim), BS=v.positions, BT=PARTS, num_warps=1,
    )  # fmt: skip
    return means
