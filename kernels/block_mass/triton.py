"""Measured block mass in Triton: a pass for the LSE of each row, and a pass that sums weights by block."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dittools.kernels.triton_parts import LN_2, LOG2_E, shared_memory

LSE_ROWS = 128


@dataclass(frozen=True)
class Variant:
    """How 16-bit tensors are read; every variant computes the same.

    Args:
        keys: keys in a tile, at most a key block of the mass pass. Small tiles let more programs share a
            multiprocessor, and one's exponentials run beside another's products.
        warps: of a program with 128 query rows; one with fewer has 4.
        stages: tiles of keys on their way, as far as shared memory goes.
        group: key blocks whose sums over a row wait until they are added up over the rows.
    """

    keys: int = 64
    warps: int = 8
    stages: int = 3
    group: int = 8


DEFAULT = Variant(warps=4, stages=2)


@triton.jit
def tile_logits(b_q, p_k, o_n, o_d, keys, stride_ks, D: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr):
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
    """Grid: (query tiles, lanes). Writes the LSE in natural log, fp32 ``[B, H, Sq]``; not finite where it overflowed.

    Weights are taken relative to the largest of the row's first BN, which needs no maximum in the loop. A sum holds at
    least a weight of 1, so that only a logit far above all of those can spoil it, and then it is infinite.
    """
    i_lane = tl.program_id(1).to(tl.int64)
    p_q += i_lane // heads * stride_qb + i_lane % heads * stride_qh
    p_k += i_lane // heads * stride_kb + i_lane % heads * stride_kh
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    in_q = (o_m[:, None] < queries) & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_m[:, None].to(tl.int64) * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
    scale = scale * LOG2_E
    whole = keys // BN
    b_s = tile_logits(b_q, p_k, o_n, o_d, keys, stride_ks, D, True, PRECISION)  # [BM, BN]
    b_base = tl.max(b_s, 1) * scale  # [BM]
    b_sum = tl.sum(tl.exp2(b_s * scale - b_base[:, None]), 1)  # [BM]
    for j in range(1, whole):
        b_s = tile_logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, False, PRECISION)  # [BM, BN]
        b_sum += tl.sum(tl.exp2(b_s * scale - b_base[:, None]), 1)
    if (whole > 0) & (whole * BN < keys):
        b_s = tile_logits(b_q, p_k, whole * BN + o_n, o_d, keys, stride_ks, D, True, PRECISION)  # [BM, BN]
        b_sum += tl.sum(tl.exp2(b_s * scale - b_base[:, None]), 1)
    tl.store(p_lse + i_lane * queries + o_m, (b_base + tl.log2(b_sum)) * LN_2, mask=o_m < queries)


@triton.jit
def _repair_lse(
    p_q, p_k, p_lse, scale, queries, keys, heads,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query tiles, lanes). Tiles with an LSE that is not finite are done again, with a running maximum."""
    i_lane = tl.program_id(1).to(tl.int64)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    p_lse += i_lane * queries
    b_lse = tl.load(p_lse + o_m, mask=o_m < queries, other=0.0)  # [BM]
    if tl.max((tl.abs(b_lse) < float("inf")).to(tl.int32) ^ 1, 0) > 0:
        p_q += i_lane // heads * stride_qb + i_lane % heads * stride_qh
        p_k += i_lane // heads * stride_kb + i_lane % heads * stride_kh
        o_n = tl.arange(0, BN)
        o_d = tl.arange(0, BD)
        in_q = (o_m[:, None] < queries) & (o_d[None, :] < D)
        b_q = tl.load(p_q + o_m[:, None].to(tl.int64) * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
        scale = scale * LOG2_E
        b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
        b_sum = tl.zeros([BM], dtype=tl.float32)
        for j in range(0, tl.cdiv(keys, BN)):
            b_s = tile_logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, True, PRECISION)  # [BM, BN]
            b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)  # [BM]
            b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_s * scale - b_new[:, None]), 1)
            b_max = b_new
        tl.store(p_lse + o_m, (b_max + tl.log2(b_sum)) * LN_2, mask=o_m < queries)


@triton.jit
def _sum_blocks(
    p_q, p_k, p_lse, p_mass, scale, queries, keys, heads,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh, stride_lb, stride_lh, stride_ls,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KEY_BLOCK: tl.constexpr,
    GROUP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query blocks, lanes). Each key block is one number of the mass: the sum over its tiles.

    The sum over rows goes through all warps, so it waits until GROUP key blocks are there.
    """
    i_m = tl.program_id(0)
    i_lane = tl.program_id(1).to(tl.int64)
    i_b = i_lane // heads
    i_h = i_lane % heads
    p_q += i_b * stride_qb + i_h * stride_qh
    p_k += i_b * stride_kb + i_h * stride_kh
    SPLIT: tl.constexpr = KEY_BLOCK // BN
    TURN: tl.constexpr = SPLIT * GROUP
    key_blocks = tl.cdiv(keys, KEY_BLOCK)
    p_mass += (i_lane * tl.num_programs(0) + i_m) * key_blocks
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    o_g = tl.arange(0, GROUP)
    in_q = (o_m[:, None] < queries) & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_m[:, None].to(tl.int64) * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
    p_lse += i_b * stride_lb + i_h * stride_lh
    b_lse = tl.load(p_lse + o_m.to(tl.int64) * stride_ls, mask=o_m < queries, other=float("inf"))  # [BM]
    # An LSE of infinity silences a row: those past the end, and those that had no key.
    b_lse = tl.where(b_lse == float("-inf"), float("inf"), b_lse) * LOG2_E
    scale = scale * LOG2_E
    b_sums = tl.zeros([BM, GROUP], dtype=tl.float32)
    whole = keys // KEY_BLOCK
    for j in range(0, whole * SPLIT):
        b_s = tile_logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, False, PRECISION)  # [BM, BN]
        b_part = tl.sum(tl.exp2(b_s * scale - b_lse[:, None]), 1)  # [BM]
        b_sums += tl.where((o_g == j % TURN // SPLIT)[None, :], b_part[:, None], 0.0)  # [BM, GROUP]
        if j % TURN == TURN - 1:
            tl.store(p_mass + j // TURN * GROUP + o_g, tl.sum(b_sums, 0))
            b_sums = tl.zeros([BM, GROUP], dtype=tl.float32)
    for j in tl.range(whole * SPLIT, tl.cdiv(keys, BN), num_stages=1):
        b_s = tile_logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, True, PRECISION)  # [BM, BN]
        b_part = tl.sum(tl.exp2(b_s * scale - b_lse[:, None]), 1)  # [BM]
        b_sums += tl.where((o_g == j % TURN // SPLIT)[None, :], b_part[:, None], 0.0)
    if (whole < key_blocks) | (whole % GROUP > 0):
        o_block = (key_blocks - 1) // GROUP * GROUP + o_g
        tl.store(p_mass + o_block, tl.sum(b_sums, 0), mask=o_block < key_blocks)


def triton_block_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    query,
    key,
    scale: float,
    lse: torch.Tensor | None,
    variant: Variant | None = None,
) -> torch.Tensor:
    """Launch the passes. Args and returns as `dittools.kernels.measure_block_mass`, already validated."""
    variant = variant or DEFAULT
    batches, queries, heads, _ = q.shape
    if lse is None:
        lse = triton_lse(q, k, scale, variant)
    q, k, strides, call = launch_pass(q, k)
    mass = torch.empty(batches, heads, query.count, key.count, dtype=torch.float32, device=q.device)
    _sum_blocks[(query.count, batches * heads)](
        q, k, lse, mass, scale, queries, k.shape[1], heads, *strides, *lse.stride(),
        KEY_BLOCK=key.size, GROUP=variant.group, **_tile(q, call["BD"], query.size, key.size, variant), **call,
    )  # fmt: skip
    return mass


def triton_lse(q: torch.Tensor, k: torch.Tensor, scale: float, variant: Variant | None = None) -> torch.Tensor:
    """The first pass alone. Args and returns as `dittools.kernels.measure_lse`, already validated."""
    variant = variant or DEFAULT
    batches, queries, heads, _ = q.shape
    q, k, strides, call = launch_pass(q, k)
    lse = torch.empty(batches, heads, queries, dtype=torch.float32, device=q.device)
    rows = LSE_ROWS // 2 if q.dtype == torch.float32 else LSE_ROWS
    _row_lse[(triton.cdiv(queries, rows), batches * heads)](
        q, k, lse, scale, queries, k.shape[1], heads, *strides,
        **_tile(q, call["BD"], rows, variant.keys, variant), **call,
    )  # fmt: skip
    repair_lse(q, k, lse, scale)
    return lse


def repair_lse(q: torch.Tensor, k: torch.Tensor, lse: torch.Tensor, scale: float) -> None:
    """Do the rows of ``lse`` again, in place, that overflowed; where there is none, nothing but ``lse`` is read."""
    batches, queries, heads, _ = q.shape
    q, k, strides, call = launch_pass(q, k)
    tile = {"BM": LSE_ROWS // 2, "BN": 32, "num_warps": 4, "num_stages": 1}
    _repair_lse[(triton.cdiv(queries, tile["BM"]), batches * heads)](
        q, k, lse, scale, queries, k.shape[1], heads, *strides, **tile, **call
    )


def launch_pass(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...], dict]:
    """q and k as the kernels read them, their strides, and what the passes take alike."""
    dim = q.shape[-1]
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    precision = "tf32x3" if q.dtype == torch.float32 else "tf32"
    call = {"D": dim, "BD": max(16, triton.next_power_of_2(dim)), "PRECISION": precision}
    return q, k, (*q.stride()[:3], *k.stride()[:3]), call


def _tile(q: torch.Tensor, width: int, rows: int, key_block: int, variant: Variant) -> dict[str, int]:
    """Rows and keys of a tile, warps and pipeline stages of a pass, for the shared memory of the device."""
    if q.dtype == torch.float32:
        return {"BM": rows, "BN": min(key_block, 32), "num_warps": 8 if rows == 128 else 4, "num_stages": 1}
    keys = min(key_block, variant.keys)
    fits = (shared_memory(q.device) - 2 * rows * width - 1024) // (2 * keys * width)
    stages = max(1, min(variant.stages, fits))
    return {"BM": rows, "BN": keys, "num_warps": variant.warps if rows == 128 else 4, "num_stages": stages}
