"""Measured block mass in one pass over the logits: each row's sum over each key block is kept, as a logarithm.

Masses need the LSE of a row before its first weight can be added up. Two passes find it first; here what a row holds
in each key block is written out, which is one number for 64 or 128 logits, and brought to the LSE afterwards.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dittools.kernels.block_mass.triton import launch_pass, tile_logits
from dittools.kernels.triton_parts import LOG2_E

PART_BYTES = 384 << 20
"""Most that is held of the rows' sums; heads take turns, one is the least."""


@triton.jit
def _add_tile(b_s, scale, b_max, b_sum):
    """Running maximum and sum, base 2, of rows that see one more tile of logits ``b_s`` [BM, BN]."""
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)  # [BM]
    b_sum = b_sum * tl.exp2(b_max - b_new) + tl.sum(tl.exp2(b_s * scale - b_new[:, None]), 1)
    return b_new, b_sum


@triton.jit
def _add_block(b_part, b_max, b_sum):
    """The same of rows that see one more block, known by the logarithm of its sum ``b_part`` [BM]."""
    b_new = tl.maximum(b_max, b_part)
    b_sum = b_sum * tl.exp2(b_max - b_new) + tl.exp2(b_part - b_new)
    return b_new, b_sum


@triton.jit
def _row_parts(
    p_q, p_k, p_part, p_lse, scale, queries, keys, heads, first,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh,
    D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, KEY_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (query tiles, lanes from ``first`` on). Writes base-2 logarithms, fp32: of each row's sum over each key
    block ``[lanes, Nk, Sq]`` and over all keys ``[lanes, Sq]``.
    """
    i_part = tl.program_id(1).to(tl.int64)
    i_b = (i_part + first) // heads
    i_h = (i_part + first) % heads
    p_q += i_b * stride_qb + i_h * stride_qh
    p_k += i_b * stride_kb + i_h * stride_kh
    SPLIT: tl.constexpr = KEY_BLOCK // BN
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    live = o_m < queries
    in_q = live[:, None] & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_m[:, None].to(tl.int64) * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
    p_part += i_part * tl.cdiv(keys, KEY_BLOCK) * queries + o_m  # [BM]
    scale = scale * LOG2_E
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    b_part_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_part_sum = tl.zeros([BM], dtype=tl.float32)
    whole = keys // KEY_BLOCK
    for j in range(0, whole * SPLIT):
        b_s = tile_logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, False, PRECISION)  # [BM, BN]
        b_part_max, b_part_sum = _add_tile(b_s, scale, b_part_max, b_part_sum)
        if j % SPLIT == SPLIT - 1:
            b_part = b_part_max + tl.log2(b_part_sum)  # [BM]
            tl.store(p_part, b_part, mask=live)
            p_part += queries
            b_max, b_sum = _add_block(b_part, b_max, b_sum)
            b_part_max = tl.full([BM], float("-inf"), dtype=tl.float32)
            b_part_sum = tl.zeros([BM], dtype=tl.float32)
    if whole * KEY_BLOCK < keys:
        for j in tl.range(whole * SPLIT, tl.cdiv(keys, BN), num_stages=1):
            b_s = tile_logits(b_q, p_k, j * BN + o_n, o_d, keys, stride_ks, D, True, PRECISION)  # [BM, BN]
            b_part_max, b_part_sum = _add_tile(b_s, scale, b_part_max, b_part_sum)
        b_part = b_part_max + tl.log2(b_part_sum)
        tl.store(p_part, b_part, mask=live)
        b_max, b_sum = _add_block(b_part, b_max, b_sum)
    tl.store(p_lse + i_part * queries + o_m, b_max + tl.log2(b_sum), mask=live)


@triton.jit
def _sum_rows(p_part, p_lse, p_mass, queries, key_blocks, BM: tl.constexpr, BJ: tl.constexpr):
    """Grid: (query blocks, tiles of BJ key blocks, lanes). A row's part of the mass is its sum over its LSE."""
    i_m = tl.program_id(0)
    i_lane = tl.program_id(2).to(tl.int64)
    o_m = i_m * BM + tl.arange(0, BM)
    o_j = tl.program_id(1) * BJ + tl.arange(0, BJ)
    inside = (o_j[:, None] < key_blocks) & (o_m[None, :] < queries)
    p_part += i_lane * key_blocks * queries
    b_part = tl.load(p_part + o_j[:, None].to(tl.int64) * queries + o_m[None, :], mask=inside, other=float("-inf"))
    b_lse = tl.load(p_lse + i_lane * queries + o_m, mask=o_m < queries, other=0.0)  # [BM]
    b_mass = tl.sum(tl.exp2(b_part - b_lse[None, :]), 1)  # [BJ]
    p_mass += (i_lane * tl.num_programs(0) + i_m) * key_blocks
    tl.store(p_mass + o_j, b_mass, mask=o_j < key_blocks)


def triton_block_mass_parts(q: torch.Tensor, k: torch.Tensor, query, key, scale: float) -> torch.Tensor:
    """Launch both for as many heads at a time as `PART_BYTES` allows.

    Args and returns as `dittools.kernels.measure_block_mass` without an LSE, already validated.
    """
    batches, queries, heads, _ = q.shape
    lanes = batches * heads
    q, k, strides, call = launch_pass(q, k)
    full = q.dtype == torch.float32
    rows = 64 if full else 128
    some = max(1, min(lanes, PART_BYTES // (4 * key.count * queries)))
    parts = torch.empty(some, key.count, queries, dtype=torch.float32, device=q.device)
    lse = torch.empty(some, queries, dtype=torch.float32, device=q.device)
    mass = torch.empty(lanes, query.count, key.count, dtype=torch.float32, device=q.device)
    # Wider tiles take so many registers that one program fills a multiprocessor.
    tile = {"BN": min(key.size, 32 if full else 64), "num_stages": 1 if full else 3, "num_warps": 8}
    for first in range(0, lanes, some):
        now = min(some, lanes - first)
        _row_parts[(triton.cdiv(queries, rows), now)](
            q, k, parts, lse, scale, queries, k.shape[1], heads, first, *strides,
            BM=rows, KEY_BLOCK=key.size, **tile, **call,
        )  # fmt: skip
        _sum_rows[(query.count, triton.cdiv(key.count, 32), now)](
            parts, lse, mass[first:], queries, key.count, BM=query.size, BJ=32, num_warps=4
        )
    return mass.view(batches, heads, query.count, key.count)
