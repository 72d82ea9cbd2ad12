"""The two halves of a k-means iteration in Triton: nearest centroids, and means of sorted segments."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _assign(
    p_x, p_c, p_half_norm, p_label, points, clusters,
    stride_xn, stride_xs, stride_xd,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of points, N). A tile of points stays; the centroids stream past it.

    Each lane of the tile keeps the best score of its own column and the step that gave it. One reduction
    across columns follows the loop, where one in it would cost more than the product.
    """
    i_n = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    p_x += i_n * stride_xn
    p_c += i_n * clusters * D
    p_half_norm += i_n * clusters
    in_x = (o_m[:, None] < points) & (o_d[None, :] < D)
    p_bx = p_x + o_m[:, None].to(tl.int64) * stride_xs + o_d[None, :] * stride_xd
    b_x = tl.load(p_bx, mask=in_x, other=0.0)  # [BM, BD]
    b_best = tl.full([BM, BN], float("-inf"), dtype=tl.float32)
    b_step = tl.zeros([BM, BN], dtype=tl.int32)
    for i in range(0, tl.cdiv(clusters, BN)):
        o_c = i * BN + o_n
        in_c = (o_c[:, None] < clusters) & (o_d[None, :] < D)
        b_c = tl.load(p_c + o_c[:, None] * D + o_d[None, :], mask=in_c, other=0.0)  # [BN, BD]
        b_half_norm = tl.load(p_half_norm + o_c, mask=o_c < clusters, other=float("inf"))  # [BN]
        b_score = tl.dot(b_x, tl.trans(b_c), input_precision=PRECISION) - b_half_norm[None, :]  # [BM, BN]
        b_better = b_score > b_best
        b_best = tl.where(b_better, b_score, b_best)
        b_step = tl.where(b_better, i, b_step)
    b_top = tl.max(b_best, 1)  # [BM]
    # Of columns that tie, the lowest label wins; points that are not numbers get label 0.
    b_label = tl.where(b_best == b_top[:, None], b_step * BN + o_n[None, :], 0x7FFFFFFF)  # [BM, BN]
    b_label = tl.min(b_label, 1)  # [BM]
    tl.store(p_label + i_n * points + o_m, b_label, mask=o_m < points)


@triton.jit
def _update(
    p_x, p_order, p_offset, p_old, p_new, points, clusters,
    stride_xn, stride_xs, stride_xd,
    D: tl.constexpr, BD: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Grid: (C, N). The mean of one cluster, whose points are a run of the order: no atomics, one fixed order."""
    i_c = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64)
    o_d = tl.arange(0, BD)
    first = tl.load(p_offset + i_n * (clusters + 1) + i_c)
    stop = tl.load(p_offset + i_n * (clusters + 1) + i_c + 1)
    p_x += i_n * stride_xn
    b_sum = tl.zeros([BS, BD], dtype=tl.float32)
    for i in range(first, stop, BS):
        o_s = i + tl.arange(0, BS)
        o_token = tl.load(p_order + i_n * points + o_s, mask=o_s < stop, other=0).to(tl.int64)  # [BS]
        inside = (o_s[:, None] < stop) & (o_d[None, :] < D)
        b_x = tl.load(p_x + o_token[:, None] * stride_xs + o_d[None, :] * stride_xd, mask=inside, other=0.0)  # [BS, BD]
        b_sum += b_x.to(tl.float32)
    o_out = (i_n * clusters + i_c) * D + o_d
    b_old = tl.load(p_old + o_out, mask=o_d < D)  # [BD]
    size = stop - first
    b_mean = tl.sum(b_sum, 0) / tl.maximum(size, 1).to(tl.float32)  # [BD]
    tl.store(p_new + o_out, tl.where(size > 0, b_mean, b_old), mask=o_d < D)


def triton_assign(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Launch the assignment: x ``[N, S, D]``, centroids fp32 ``[N, C, D]`` contiguous -> labels int32 ``[N, S]``."""
    lanes, points, dim = x.shape
    clusters = centroids.shape[1]
    rounded = centroids.to(x.dtype)
    # Norms of the rounded centroids: the assignment is exact for the centroids that the products see.
    half_norms = rounded.float().square().sum(-1) / 2
    labels = torch.empty(lanes, points, dtype=torch.int32, device=x.device)
    tile = {"BM": 128, "BN": 64, "num_warps": 8, "num_stages": 3}
    if x.dtype == torch.float32:
        tile = {"BM": 64, "BN": 32, "num_warps": 4, "num_stages": 1}
    _assign[(triton.cdiv(points, tile["BM"]), lanes)](
        x, rounded, half_norms, labels, points, clusters, *x.stride(),
        D=dim, BD=max(16, triton.next_power_of_2(dim)),
        PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32", **tile,
    )  # fmt: skip
    return labels


def triton_update(x: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Launch the update.

    Args:
        x: ``[N, S, D]``. order int32 ``[N, S]``, offsets int32 ``[N, C + 1]``: its points sorted by label.
        centroids: fp32 ``[N, C, D]``, contiguous; what empty clusters keep.

    Returns:
        fp32 ``[N, C, D]``.
    """
    lanes, points, dim = x.shape
    clusters = centroids.shape[1]
    new = torch.empty_like(centroids)
    _update[(clusters, lanes)](
        x, order, offsets.contiguous(), centroids, new, points, clusters, *x.stride(),
        D=dim, BD=triton.next_power_of_2(dim), BS=32, num_warps=4,
    )  # fmt: skip
    return new
