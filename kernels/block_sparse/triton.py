"""Block-sparse attention forward in plain Triton: pointer loads, index lists, no TMA; sm80 and up.

The maths is the streaming softmax in base 2. Each program owns a tile of query positions of one head and
walks the list of key blocks that its query block keeps. An order is applied on the fly: rows of q, k and v
are gathered by token, rows of out are scattered.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dittools.kernels.strides import lane_strides
from dittools.kernels.triton_parts import LN_2, LOG2_E, attend_tile, shared_memory, tokens_at


@triton.jit
def _block_sparse_forward(
    p_q,
    p_k,
    p_v,
    p_out,
    p_lse,
    p_counts,
    p_indices,
    p_order,
    p_bias,
    p_schedule,
    p_positions,
    p_drawn,
    p_bits,
    p_taken,
    scale,
    sample_bias,
    queries,
    keys,
    heads,
    key_blocks,
    words,
    draws,
    most,
    stride_qb,
    stride_qs,
    stride_qh,
    stride_kb,
    stride_ks,
    stride_kh,
    stride_vb,
    stride_vs,
    stride_vh,
    stride_ob,
    stride_os,
    stride_oh,
    stride_cb,
    stride_ch,
    stride_ib,
    stride_ih,
    stride_pb,
    stride_ph,
    stride_bb,
    stride_bh,
    stride_sb,
    stride_sh,
    stride_wb,
    stride_wh,
    stride_tb,
    stride_th,
    D: tl.constexpr,
    BD: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    RAGGED_KEYS: tl.constexpr,
    HAS_ORDER: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCHEDULE: tl.constexpr,
    PER: tl.constexpr,
    HAS_TAKEN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (query tiles, lanes), tiles fastest: programs in flight share one head's K and V in L2.

    With PER a sample follows the list: keys at ``p_positions``, PER of each key block, where bits say it is not kept;
    of its ``draws``, each at most ``most`` keys, query blocks take turns.
    """
    i_tile = tl.program_id(0)
    i_lane = tl.program_id(1)
    i_b = (i_lane // heads).to(tl.int64)
    i_h = (i_lane % heads).to(tl.int64)
    i_m = i_tile * BM // QUERY_BLOCK
    if HAS_SCHEDULE:
        i_m = tl.load(p_schedule + i_b * stride_sb + i_h * stride_sh + i_m)
        i_tile = i_m * (QUERY_BLOCK // BM) + i_tile % (QUERY_BLOCK // BM)
    SPLIT: tl.constexpr = KEY_BLOCK // BN

    p_q += i_b * stride_qb + i_h * stride_qh
    p_k += i_b * stride_kb + i_h * stride_kh
    p_v += i_b * stride_vb + i_h * stride_vh
    p_out += i_b * stride_ob + i_h * stride_oh
    p_lse += i_lane.to(tl.int64) * queries
    p_counts += i_b * stride_cb + i_h * stride_ch
    p_indices += i_b * stride_ib + i_h * stride_ih + i_m.to(tl.int64) * key_blocks
    p_order += i_b * stride_pb + i_h * stride_ph
    p_bias += i_b * stride_bb + i_h * stride_bh

    o_d = tl.arange(0, BD)
    o_n = tl.arange(0, BN)
    o_m = i_tile * BM + tl.arange(0, BM)
    in_m = o_m < queries
    o_row = tokens_at(p_order, o_m, queries, HAS_ORDER, True)
    in_q = in_m[:, None] & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_row[:, None] * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]

    b_acc = tl.zeros([BM, BD], dtype=tl.float32)
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    scale = scale * LOG2_E

    count = tl.load(p_counts + i_m)
    whole = count
    if RAGGED_KEYS:
        # Lists ascend, so a kept ragged block is the last: it is peeled off, and the loop masks nothing.
        i_last = tl.load(p_indices + tl.maximum(count - 1, 0))
        whole = tl.where((count > 0) & (i_last == key_blocks - 1), count - 1, count)

    # The block for the next turn is looked up one turn early: its address is known when the turn begins.
    steps = whole * SPLIT
    i_n = tl.load(p_indices)
    o_token = tokens_at(p_order, i_n * KEY_BLOCK + o_n, keys, HAS_ORDER, RAGGED_KEYS)  # [BN]
    i_ahead = tl.load(p_indices + 1 // SPLIT, mask=steps > 1, other=0)
    bias = 0.0
    if HAS_BIAS:
        bias = tl.load(p_bias + i_n) * LOG2_E
    for j in range(0, steps):
        o_ahead = i_ahead * KEY_BLOCK + (j + 1) % SPLIT * BN + o_n
        o_next = tokens_at(p_order, o_ahead, keys, HAS_ORDER, RAGGED_KEYS)  # [BN]
        i_after = tl.load(p_indices + (j + 2) // SPLIT, mask=j + 2 < steps, other=0)
        bias_next = 0.0
        if HAS_BIAS:
            bias_next = tl.load(p_bias + i_ahead) * LOG2_E
        b_acc, b_max, b_sum = attend_tile(
            b_q, b_acc, b_max, b_sum, p_k, p_v, o_token, o_d, o_n < BN, bias, scale, stride_ks, stride_vs,
            D, BD, False, HAS_BIAS, PRECISION,
        )  # fmt: skip
        o_token = o_next
        bias = bias_next
        i_ahead = i_after

    if RAGGED_KEYS:  # noqa: SIM102 (the first test is of a constant, the second of a loaded value)
        if whole < count:
            bias = 0.0
            if HAS_BIAS:
                bias = tl.load(p_bias + (key_blocks - 1)) * LOG2_E
            for i_part in tl.range(0, SPLIT, num_stages=1):
                # The first part always holds a key, so later parts may be empty without an empty maximum.
                o_position = (key_blocks - 1) * KEY_BLOCK + i_part * BN + o_n
                o_token = tokens_at(p_order, o_position, keys, HAS_ORDER, True)
                b_acc, b_max, b_sum = attend_tile(
                    b_q, b_acc, b_max, b_sum, p_k, p_v, o_token, o_d, o_position < keys, bias, scale,
                    stride_ks, stride_vs, D, BD, True, HAS_BIAS, PRECISION,
                )  # fmt: skip

    if PER > 0:
        i_draw = i_m % draws
        drawn = tl.load(p_drawn + i_draw)
        if HAS_TAKEN:
            drawn = tl.minimum(drawn, tl.load(p_taken + i_b * stride_tb + i_h * stride_th))
        p_positions += i_draw * most
        p_row = p_bits + i_b * stride_wb + i_h * stride_wh + i_m.to(tl.int64) * words
        for i in range(0, drawn, BN):
            o_drawn = i + o_n
            o_block = o_drawn // PER
            there = o_drawn < drawn
            b_word = tl.load(p_row + o_block // 32, mask=there, other=-1)  # [BN]
            skipped = ((b_word >> (o_block % 32)) & 1) == 0
            o_position = tl.load(p_positions + o_drawn, mask=there, other=0)
            o_token = tokens_at(p_order, o_position, keys, HAS_ORDER, True)
            b_acc, b_max, b_sum = attend_tile(
                b_q, b_acc, b_max, b_sum, p_k, p_v, o_token, o_d, there & skipped, sample_bias, scale,
                stride_ks, stride_vs, D, BD, True, True, PRECISION,
            )  # fmt: skip

    b_total = tl.where(b_sum > 0, b_sum, 1.0)  # an empty row: zeros, and its maximum of -inf as LSE
    b_out = b_acc / b_total[:, None]  # [BM, BD]
    b_lse = (b_max + tl.log2(b_total)) * LN_2  # [BM]
    tl.store(p_out + o_row[:, None] * stride_os + o_d[None, :], b_out.to(p_out.dtype.element_ty), mask=in_q)
    tl.store(p_lse + o_row, b_lse, mask=in_m)


def triton_block_sparse_attention(
    q, k, v, mask, *, order=None, scale: float, beside=None, schedule: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the forward kernel: `block_sparse_attention` with the LSE, D in {64, 96, 128}, blocks of 64 or 128.

    ``beside``: a key bias or a `Sample`, of validated arguments.
    ``schedule``: int32 ``[B or 1, H or 1, Mq]``, the order in which the query blocks of each head start, as
    `dittools.kernels.schedule` makes it; first to last when None. Results are the same.
    """
    batches, queries, heads, dim = q.shape
    keys = k.shape[1]
    key_bias, sample = (beside, None) if isinstance(beside, torch.Tensor) else (None, beside)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    kv_num_blocks, kv_indices = mask.kv_blocks()
    out = torch.empty((batches, queries, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batches, heads, queries), dtype=torch.float32, device=q.device)
    if order is not None and order.stride(-1) != 1:
        order = order.contiguous()
    if key_bias is not None and key_bias.stride(-1) != 1:
        key_bias = key_bias.contiguous()
    if schedule is not None and schedule.stride(-1) != 1:
        schedule = schedule.contiguous()
    tile = tile_shape(q.device, q.dtype, dim, mask.query.size, mask.key.size)
    # With a schedule every query block has all its tiles: which one is ragged is not known here.
    tiles = triton.cdiv(queries, tile["BM"]) if schedule is None else mask.query.count * (mask.query.size // tile["BM"])
    grid = (tiles, batches * heads)
    bits = positions = taken = counts = None
    if sample is not None:
        bits, positions, counts = mask.kept_bits(), sample.positions.contiguous(), sample.counts.contiguous()
        taken = sample.taken
    _block_sparse_forward[grid](
        q, k, v, out, lse, kv_num_blocks, kv_indices,
        kv_num_blocks if order is None else order, lse if key_bias is None else key_bias,
        kv_num_blocks if schedule is None else schedule, kv_num_blocks if positions is None else positions,
        kv_num_blocks if counts is None else counts,
        kv_num_blocks if bits is None else bits, kv_num_blocks if taken is None else taken,
        scale, 0.0 if sample is None else sample.bias * LOG2_E.value, queries, keys, heads, mask.key.count,
        0 if bits is None else bits.shape[-1], *((0, 0) if positions is None else positions.shape),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:3],
        *lane_strides(kv_num_blocks), *lane_strides(kv_indices), *lane_strides(order), *lane_strides(key_bias),
        *lane_strides(schedule), *lane_strides(bits), *lane_strides(taken),
        D=dim, BD=triton.next_power_of_2(dim), QUERY_BLOCK=mask.query.size, KEY_BLOCK=mask.key.size,
        RAGGED_KEYS=keys % mask.key.size != 0, HAS_ORDER=order is not None, HAS_BIAS=key_bias is not None,
        HAS_SCHEDULE=schedule is not None, PER=0 if sample is None else sample.per, HAS_TAKEN=taken is not None,
        # Three tf32 products keep the digits that a caller with fp32 asked for, still on the tensor cores.
        PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
        **tile,
    )  # fmt: skip
    return out, lse


def tile_shape(
    device: torch.device, dtype: torch.dtype, head_dim: int, query_block: int, key_block: int
) -> dict[str, int]:
    """Tile rows and columns, warps and pipeline stages. Tiles divide the blocks."""
    room = shared_memory(device)
    if dtype == torch.float32:
        return {"BM": 64, "BN": 32, "num_warps": 8, "num_stages": 2 if room >= 150 << 10 else 1}
    # Wide key tiles pay only where 128 rows share them and three stages of them fit: Hopper and later.
    wide = query_block == 128 and room >= 200 << 10
    return {
        "BM": query_block,
        "BN": key_block if wide else 64,
        "num_warps": 8 if query_block == 128 else 4,
        "num_stages": 3 if room >= 150 << 10 else 2,
    }
