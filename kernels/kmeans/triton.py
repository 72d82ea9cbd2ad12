"""The assignment of a k-means iteration in Triton: the nearest centroid of every point."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Variant:
    """Points and centroids of a tile of the assignment, warps, and stages of centroids in flight.

    ``folded`` products start from minus the half norms, which saves an addition a score and waits for them; else the
    half norms come in while the product runs. ``narrow``: the best are kept for 8 columns and not for all of a tile,
    which takes few registers: more programs share a multiprocessor, or tiles of centroids may be wide.
    """

    points: int = 128
    centroids: int = 64
    warps: int = 8
    stages: int = 3
    folded: bool = False
    narrow: bool = False


def default_variant(dtype: torch.dtype) -> Variant:
    """The variant that runs when none is asked for: of those that an H200 was timed with, the fastest."""
    if dtype == torch.float32:
        return Variant(64, 32, 4, 1)
    return Variant(stages=2, folded=True, narrow=True)


@triton.jit
def _round(
    p_c, p_rounded, p_half, clusters,
    D: tl.constexpr, BD: tl.constexpr, BC: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of centroids, N). Centroids in the dtype of the points, and half their squared norms, less than
    nothing if FOLDED.

    Filled up to whole tiles of the assignment with zeros, which a norm of infinity makes the nearest of no point.
    """
    i_n = tl.program_id(1).to(tl.int64)
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    o_d = tl.arange(0, BD)
    inside = (o_c[:, None] < clusters) & (o_d[None, :] < D)
    b_c = tl.load(p_c + (i_n * clusters + o_c[:, None]) * D + o_d[None, :], mask=inside, other=0.0)  # [BC, BD]
    b_rounded = b_c.to(p_rounded.dtype.element_ty)
    o_out = i_n * tl.num_programs(0) * BC + o_c
    tl.store(p_rounded + o_out[:, None] * BD + o_d[None, :], b_rounded)
    # Norms of the rounded centroids: the assignment is exact for the centroids that the products see.
    b_wide = b_rounded.to(tl.float32)
    b_half = tl.where(o_c < clusters, tl.sum(b_wide * b_wide, 1) / 2, float("inf"))  # [BC]
    tl.store(p_half + o_out, -b_half if FOLDED else b_half)


@triton.jit
def _better(b_score, b_at, b_other, b_other_at):
    """The larger score, and where it was; of equal ones the first."""
    b_wins = b_other > b_score
    return tl.where(b_wins, b_other, b_score), tl.where(b_wins, b_other_at, b_at)


@triton.jit
def _assign(
    p_x, p_c, p_half, p_label, points, clusters, inner,
    stride_xo, stride_xn, stride_xs, stride_xd,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, FOLDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of points, N). A tile of points stays; the centroids stream past it.

    Each lane of the tile keeps the best score of its own column, or of every BK-th, and the part of the centroids, BK
    of them, that gave it. One reduction across columns follows the loop, where one in it would cost more than the
    product. Nothing in the loop is masked: what it loads is filled up to whole tiles.
    """
    i_n = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    steps = tl.cdiv(clusters, BN)
    p_x += i_n // inner * stride_xo + i_n % inner * stride_xn
    p_bc = p_c + i_n * steps * (BN * BD) + o_n[:, None] * BD + o_d[None, :]
    p_bh = p_half + i_n * steps * BN + o_n
    p_bx = p_x + tl.minimum(o_m, points - 1)[:, None].to(tl.int64) * stride_xs + o_d[None, :] * stride_xd
    b_x = tl.load(p_bx) if D == BD else tl.load(p_bx, mask=o_d[None, :] < D, other=0.0)  # [BM, BD]
    PARTS: tl.constexpr = BN // BK
    b_best = tl.full([BM, BK], float("-inf"), dtype=tl.float32)
    b_part = tl.zeros([BM, BK], dtype=tl.int32)
    for i in range(0, steps):
        b_c = tl.load(p_bc)  # [BN, BD]
        b_half = tl.load(p_bh)  # [BN]
        if FOLDED:
            b_less = tl.broadcast_to(b_half[None, :], [BM, BN])
            b_score = tl.dot(b_x, tl.trans(b_c), b_less, input_precision=PRECISION)  # [BM, BN]
        else:
            b_score = tl.dot(b_x, tl.trans(b_c), input_precision=PRECISION) - b_half[None, :]  # [BM, BN]
        if PARTS == 1:
            b_best, b_part = _better(b_best, b_part, b_score, i)
        else:
            b_parts = tl.broadcast_to(tl.arange(0, PARTS)[None, :, None], [BM, PARTS, BK])
            b_top, b_in = tl.reduce((tl.reshape(b_score, [BM, PARTS, BK]), b_parts), 1, _better)  # [BM, BK]
            b_best, b_part = _better(b_best, b_part, b_top, b_in + i * PARTS)
        p_bc += BN * BD
        p_bh += BN
    b_max = tl.max(b_best, 1)  # [BM]
    o_k = tl.arange(0, BK)
    # Of columns that tie, the lowest label wins; points that are not numbers get label 0.
    b_label = tl.where(b_best == b_max[:, None], b_part * BK + o_k[None, :], 0x7FFFFFFF)  # [BM, BK]
    b_label = tl.min(b_label, 1)  # [BM]
    tl.store(p_label + i_n * points + o_m, b_label, mask=o_m < points)


def triton_assign(x: torch.Tensor, centroids: torch.Tensor, variant: Variant | None = None) -> torch.Tensor:
    """Launch the assignment, as `nearest_centroids` with contiguous centroids; `default_variant` when None is given."""
    lanes, points, dim, strides = lanes_of(x)
    clusters = centroids.shape[1]
    full = x.dtype == torch.float32
    v = variant or default_variant(x.dtype)
    rounded, half = round_centroids(centroids, x.dtype, v.centroids, folded=v.folded)
    width = rounded.shape[-1]
    labels = torch.empty(lanes, points, dtype=torch.int32, device=x.device)
    _assign[(triton.cdiv(points, v.points), lanes)](
        x, rounded, half, labels, points, clusters, *strides,
        D=dim, BD=width, BM=v.points, BN=v.centroids, BK=8 if v.narrow else v.centroids, FOLDED=v.folded,
        PRECISION="tf32x3" if full else "tf32",
        num_warps=v.warps, num_stages=v.stages,
    )  # fmt: skip
    return labels


def round_centroids(
    centroids: torch.Tensor, dtype: torch.dtype, tile: int, *, folded: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Centroids as an assignment reads them.

    Args:
        centroids: fp32 ``[N, C, D]``, contiguous. tile: to whose multiple C is filled up.
        folded: whether half norms are given as less than nothing.

    Returns:
        ``[N, C', D']`` in the dtype, D filled up to a power of two of at least 16 with zeros, and fp32 ``[N, C']``,
        half their squared norms: infinite where there is no centroid.
    """
    lanes, clusters, dim = centroids.shape
    width, steps = max(16, triton.next_power_of_2(dim)), triton.cdiv(clusters, tile)
    rounded = torch.empty(lanes, steps * tile, width, dtype=dtype, device=centroids.device)
    half = torch.empty(lanes, steps * tile, dtype=torch.float32, device=centroids.device)
    _round[(steps, lanes)](centroids, rounded, half, clusters, D=dim, BD=width, BC=tile, FOLDED=folded, num_warps=4)
    return rounded, half


def lanes_of(x: torch.Tensor) -> tuple[int, int, int, tuple[int, ...]]:
    """Lanes, points and dimensions of x, and how kernels find a lane: lanes of the inner dimension, and all strides."""
    if x.ndim == 3:
        return *x.shape, (x.shape[0], 0, *x.stride())
    batches, heads, points, dim = x.shape
    return batches * heads, points, dim, (heads, *x.stride())
