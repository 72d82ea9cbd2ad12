"""`sample_tiles` in Triton: keys and values in one pass, head by head in memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _sample_tiles(
    p_k, p_v, p_positions, p_keys, p_values, drawn, rows, draws, heads,
    stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    D: tl.constexpr, BN: tl.constexpr, SLOT: tl.constexpr, PER: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of the rows of a draw, draws, lanes)."""
    i_draw = tl.program_id(1)
    i_lane = tl.program_id(2)
    i_b, i_h = (i_lane // heads).to(tl.int64), (i_lane % heads).to(tl.int64)
    o_row = tl.program_id(0) * BN + tl.arange(0, BN)
    o_number = o_row
    if INTERLEAVED:
        o_column = o_row % SLOT
        o_block = o_column // (4 * PER) * 4 + o_column % 8 // 2
        o_number = o_row - o_column + o_block * PER + o_column % (4 * PER) // 8 * 2 + o_column % 2
    o_token = tl.load(p_positions + i_draw * drawn + tl.minimum(o_number, drawn - 1))  # [BN], int64
    o_d = tl.arange(0, D)
    o_out = ((i_lane.to(tl.int64) * draws + i_draw) * rows + o_row)[:, None] * D + o_d[None, :]
    b_k = tl.load(p_k + i_b * stride_kb + i_h * stride_kh + o_token[:, None] * stride_ks + o_d[None, :])  # [BN, D]
    tl.store(p_keys + o_out, b_k)
    b_v = tl.load(p_v + i_b * stride_vb + i_h * stride_vh + o_token[:, None] * stride_vs + o_d[None, :])  # [BN, D]
    tl.store(p_values + o_out, b_v)


def triton_sample_tiles(
    k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor, slot: int, per: int, interleaved: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel: `sample_tiles` of positions in the order of the call, D a power of two."""
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    batches, _, heads, dim = k.shape
    positions = positions.contiguous()
    draws, drawn = positions.shape
    rows = triton.cdiv(drawn, slot) * slot
    keys, values = (torch.empty(batches, heads, draws * rows, dim, dtype=x.dtype, device=x.device) for x in (k, v))
    _sample_tiles[(rows // 64, draws, batches * heads)](
        k, v, positions, keys, values, drawn, rows, draws, heads, *k.stride()[:3], *v.stride()[:3],
        D=dim, BN=64, SLOT=slot, PER=per, INTERLEAVED=interleaved,
    )  # fmt: skip
    return keys.transpose(1, 2), values.transpose(1, 2)
