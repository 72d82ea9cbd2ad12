"""Measured block mass in Triton: a pass for the LSE of each row, and a pass that sums weights by block."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dittools.kernels.triton_block_sparse import _shared_memory as shared_memory

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _logits(b_q, p_k, o_n, o_d, keys, stride_ks, D: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr):
    """Products of a query tile with keys ``o_n`` [BN], -inf past the end if MASKED."""
    inside = o_d[None, :] < D
    if MASKED:
        inside = inside & (o_n[:, None] < keys)
    b_k = tl.load(p_k + o_n[:, None].to(tl.int64) * stride_ks + o_d[None, :], mask=inside, other=0.0)  # [BN, BD]
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
    if MASKED:
        b_s = tl.where(o_n[None, :] < keys, b_s, float("-inf"))
    return b_s


@triton.jit
def _row_lse(
    p_q, p_k, p_lse, scale, queries, keys, heads,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query tiles, lanes). Writes the LSE in natural log, fp32 ``[B, H, Sq]``."""
    i_lane = tl.program_id(1).to(tl.int64)
    p_q += i_lane // heads * stride_qb + i_lane % heads * stride_qh
    p_k += i_lane // heads * stride_kb + i_lane % heads * stride_kh
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    in_q = (o_m[:, None] < queries) & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_m[:, None].to(tl.int64) * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
    scale = scale * LOG2_E
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    whole = keys // BN
    for j in range(0, whole):
        b_s = _logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, False, PRECISION)  # [BM, BN]
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)  # [BM]
        b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_s * scale - b_new[:, None]), 1)
        b_max = b_new
    if whole * BN < keys:
        b_s = _logits(b_q, p_k, whole * BN + o_n, o_d, keys, stride_ks, D, True, PRECISION)  # [BM, BN]
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)
        b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_s * scale - b_new[:, None]), 1)
        b_max = b_new
    b_lse = (b_max + tl.log2(b_sum)) * LN_2  # [BM]
    tl.store(p_lse + i_lane * queries + o_m, b_lse, mask=o_m < queries)


@triton.jit
def _sum_blocks(
    p_q, p_k, p_lse, p_mass, scale, queries, keys, heads,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh, stride_lb, stride_lh, stride_ls,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KEY_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query blocks, lanes). Each key block is one number of the mass: the sum over its tiles."""
    i_m = tl.program_id(0)
    i_lane = tl.program_id(1).to(tl.int64)
    i_b = i_lane // heads
    i_h = i_lane % heads
    p_q += i_b * stride_qb + i_h * stride_qh
    p_k += i_b * stride_kb + i_h * stride_kh
    SPLIT: tl.constexpr = KEY_BLOCK // BN
    key_blocks = tl.cdiv(keys, KEY_BLOCK)
    p_mass += (i_lane * tl.num_programs(0) + i_m) * key_blocks
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    in_q = (o_m[:, None] < queries) & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_m[:, None].to(tl.int64) * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
    p_lse += i_b * stride_lb + i_h * stride_lh
    b_lse = tl.load(p_lse + o_m.to(tl.int64) * stride_ls, mask=o_m < queries, other=float("inf"))  # [BM]
    # An LSE of infinity silences a row: those past the end, and those that had no key.
    b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse) * LOG2_E
    scale = scale * LOG2_E
    b_part = tl.zeros([BM], dtype=tl.float32)
    whole = keys // KEY_BLOCK
    for j in range(0, whole * SPLIT):
        b_s = _logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, False, PRECISION)  # [BM, BN]
        b_part += tl.sum(tl.exp2(b_s * scale - b_lse[:, None]), 1)  # [BM]
        if j % SPLIT == SPLIT - 1:
            tl.store(p_mass + j // SPLIT, tl.sum(b_part, 0))
            b_part = tl.zeros([BM], dtype=tl.float32)
    if whole < key_blocks:
        for j in tl.range(whole * SPLIT, tl.cdiv(keys, BN), num_stages=1):
            b_s = _logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, True, PRECISION)  # [BM, BN]
            b_part += tl.sum(tl.exp2(b_s * scale - b_lse[:, None]), 1)  # [BM]
        tl.store(p_mass + whole, tl.sum(b_part, 0))


def triton_block_mass(
    q: torch.Tensor, k: torch.Tensor, query, key, scale: float, lse: torch.Tensor | None
) -> torch.Tensor:
    """Launch the passes. Args and returns as `dittools.kernels.measure_block_mass`, already validated."""
    batches, queries, heads, _ = q.shape
    keys = k.shape[1]
    lanes = batches * heads
    if lse is None:
        lse = triton_lse(q, k, scale)
    q, k, strides, call = _launch(q, k)
    full = q.dtype == torch.float32
    mass = torch.empty(batches, heads, query.count, key.count, dtype=torch.float32, device=q.device)
    _sum_blocks[(query.count, lanes)](
        q, k, lse, mass, scale, queries, keys, heads, *strides, *lse.stride(),
        BM=query.size, KEY_BLOCK=key.size, **_block_tile(q.device, full, call["BD"], query.size, key.size), **call,
    )  # fmt: skip
    return mass


def triton_lse(q: torch.Tensor, k: torch.Tensor, scale: float) -> torch.Tensor:
    """The first pass alone. Args and returns as `dittools.kernels.block_mass.measure_lse`, already validated."""
    batches, queries, heads, _ = q.shape
    q, k, strides, call = _launch(q, k)
    lse = torch.empty(batches, heads, queries, dtype=torch.float32, device=q.device)
    full = q.dtype == torch.float32
    tile = {"BM": 64, "BN": 32, "num_stages": 1} if full else {"BM": 128, "BN": 64, "num_stages": 3}
    _row_lse[(triton.cdiv(queries, tile["BM"]), batches * heads)](
        q, k, lse, scale, queries, k.shape[1], heads, *strides, num_warps=8, **tile, **call
    )
    return lse


def _launch(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...], dict]:
    """q and k as the kernels read them, their strides, and what both passes take alike."""
    dim = q.shape[-1]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    precision = "tf32x3" if q.dtype == torch.float32 else "tf32"
    call = {"D": dim, "BD": max(16, triton.next_power_of_2(dim)), "PRECISION": precision}
    return q, k, (*q.stride()[:3], *k.stride()[:3]), call


def _block_tile(device: torch.device, full: bool, width: int, query_block: int, key_block: int) -> dict[str, int]:
    """Keys in a tile, warps and pipeline stages of the second pass, for the shared memory of the device."""
    warps = 8 if query_block == 128 else 4
    if full:
        return {"BN": min(key_block, 32), "num_warps": warps, "num_stages": 1}
    fits = (shared_memory(device) - 2 * query_block * width - 1024) // (2 * key_block * width)
    return {"BN": key_block, "num_warps": warps, "num_stages": max(1, min(3, fits))}
