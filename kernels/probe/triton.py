"""The probe in Triton: keys are split so that a card is full, and a short second kernel joins the splits.

A program attends its probe rows to one split of the keys once, and multiplies the weights with v three times: as they
are, and under two masks. All three share the running maximum of the dense row.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
PAIR = 2  # masks that share a program
WAVES = 4  # times that a card is filled, at most
BUSY = 0.95  # share of it that is enough: every split more is read again when splits are joined
OCCUPANCY = 2  # programs that a multiprocessor holds


@triton.jit
def _kept(p_word, o_m, o_n, rows, in_m, BN: tl.constexpr):
    """Whether each row keeps each of BN keys, whose bits start at ``p_word``: bool ``[BM, BN]``."""
    b_word = tl.load(p_word + o_m, mask=in_m, other=0)[:, None]  # [BM, 1]
    if BN == 64:
        b_next = tl.load(p_word + rows + o_m, mask=in_m, other=0)[:, None]  # [BM, 1]
        b_word = tl.where(o_n[None, :] < 32, b_word, b_next)  # [BM, BN]
    return (b_word >> (o_n[None, :] & 31)) & 1 != 0


@triton.jit
def _attend_keys(
    b_q, b_dense, b_one, b_two, b_max, b_sum, b_sum_one, b_sum_two,
    p_k, p_v, p_one, p_two, i, keys, o_m, o_n, o_d, o_v, rows, scale, stride_ks, stride_vs,
    D: tl.constexpr, BD: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the three streaming softmaxes, with BN keys from key i on; those past the end drop out if MASKED."""
    start = tl.zeros([], dtype=tl.int64) + i
    p_bk = p_k + start * stride_ks + (o_n[:, None] * stride_ks + o_d[None, :])
    p_bv = p_v + start * stride_vs + (o_n[:, None] * stride_vs + o_v[None, :])
    if MASKED:
        in_n = o_n[:, None] < keys - i
        b_k = tl.load(p_bk, mask=in_n & (o_d[None, :] < D), other=0.0)  # [BN, BD]
        b_v = tl.load(p_bv, mask=in_n & (o_v[None, :] < D), other=0.0)  # [BN, BV]
    else:
        if BD == D:
            b_k = tl.load(p_bk)  # [BN, BD]
            b_v = tl.load(p_bv)  # [BN, BV]
        else:
            b_k = tl.load(p_bk, mask=o_d[None, :] < D, other=0.0)  # [BN, BD]
            b_v = tl.load(p_bv, mask=o_v[None, :] < D, other=0.0)  # [BN, BV]
    in_m = o_m < rows
    b_keep_one = _kept(p_one + start // 32 * rows, o_m, o_n, rows, in_m, BN)  # [BM, BN]
    b_keep_two = _kept(p_two + start // 32 * rows, o_m, o_n, rows, in_m, BN)
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)  # [BM, BN]
    if MASKED:
        b_s = tl.where(o_n[None, :] < keys - i, b_s, float("-inf"))
    b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale)  # [BM]
    b_alpha = tl.exp2(b_max - b_new)  # [BM]
    b_p = tl.exp2(b_s * scale - b_new[:, None])  # [BM, BN]
    b_p_one = tl.where(b_keep_one, b_p, 0.0)
    b_p_two = tl.where(b_keep_two, b_p, 0.0)
    b_sum = b_sum * b_alpha + tl.sum(b_p, 1)
    b_sum_one = b_sum_one * b_alpha + tl.sum(b_p_one, 1)
    b_sum_two = b_sum_two * b_alpha + tl.sum(b_p_two, 1)
    # All is ready before the first product starts, so that the three can be in flight together.
    b_dense *= b_alpha[:, None]
    b_one *= b_alpha[:, None]
    b_two *= b_alpha[:, None]
    b_p = b_p.to(b_v.dtype)
    b_p_one = b_p_one.to(b_v.dtype)
    b_p_two = b_p_two.to(b_v.dtype)
    b_dense = tl.dot(b_p, b_v, b_dense, input_precision=PRECISION)  # [BM, BV]
    b_one = tl.dot(b_p_one, b_v, b_one, input_precision=PRECISION)
    b_two = tl.dot(b_p_two, b_v, b_two, input_precision=PRECISION)
    return b_dense, b_one, b_two, b_new, b_sum, b_sum_one, b_sum_two


@triton.jit
def _probe(
    p_q, p_k, p_v, p_kept, p_out, p_sum, p_max, scale, rows, keys, words, heads, count, pairs, split,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh, stride_vb, stride_vs, stride_vh,
    D: tl.constexpr, BD: tl.constexpr, BV: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PARTS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid: (parts of the head dim x pairs of masks x tiles of rows, splits, lanes).

    Writes for each (lane, pair, split) three outputs fp32 ``[rows, D]`` and their sums ``[rows]``, both at the maximum
    ``[rows]`` of the split, in base 2. ``split`` is the keys of one, a multiple of BN.
    """
    i_part = tl.program_id(0) % PARTS
    i_pair = tl.program_id(0) // PARTS % pairs
    i_tile = tl.program_id(0) // PARTS // pairs
    i_split = tl.program_id(1)
    i_lane = tl.program_id(2).to(tl.int64)
    p_q += i_lane // heads * stride_qb + i_lane % heads * stride_qh
    p_k += i_lane // heads * stride_kb + i_lane % heads * stride_kh
    p_v += i_lane // heads * stride_vb + i_lane % heads * stride_vh
    # Of an odd number of masks the last one comes twice.
    p_one = p_kept + (i_pair * 2).to(tl.int64) * words * rows
    p_two = p_kept + tl.minimum(i_pair * 2 + 1, count - 1).to(tl.int64) * words * rows

    o_m = i_tile * BM + tl.arange(0, BM)
    o_n = tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    o_v = i_part * BV + tl.arange(0, BV)
    scale = scale * LOG2_E
    in_q = (o_m[:, None] < rows) & (o_d[None, :] < D)
    b_q = tl.load(p_q + o_m[:, None] * stride_qs + o_d[None, :], mask=in_q, other=0.0)  # [BM, BD]
    b_dense = tl.zeros([BM, BV], dtype=tl.float32)
    b_one = tl.zeros([BM, BV], dtype=tl.float32)
    b_two = tl.zeros([BM, BV], dtype=tl.float32)
    b_max = tl.full([BM], float("-inf"), dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    b_sum_one = tl.zeros([BM], dtype=tl.float32)
    b_sum_two = tl.zeros([BM], dtype=tl.float32)
    first = i_split * split
    stop = tl.minimum(first + split, keys)
    whole = first + (stop - first) // BN * BN
    for i in range(first, whole, BN):
        b_dense, b_one, b_two, b_max, b_sum, b_sum_one, b_sum_two = _attend_keys(
            b_q, b_dense, b_one, b_two, b_max, b_sum, b_sum_one, b_sum_two,
            p_k, p_v, p_one, p_two, i, keys, o_m, o_n, o_d, o_v, rows, scale, stride_ks, stride_vs,
            D, BD, BN, False, PRECISION,
        )  # fmt: skip
    if whole < stop:
        b_dense, b_one, b_two, b_max, b_sum, b_sum_one, b_sum_two = _attend_keys(
            b_q, b_dense, b_one, b_two, b_max, b_sum, b_sum_one, b_sum_two,
            p_k, p_v, p_one, p_two, whole, keys, o_m, o_n, o_d, o_v, rows, scale, stride_ks, stride_vs,
            D, BD, BN, True, PRECISION,
        )  # fmt: skip

    i_out = (i_lane * pairs + i_pair) * tl.num_programs(1) + i_split
    p_max += i_out * rows + o_m
    p_sum += i_out * 3 * rows + o_m
    p_out += i_out * 3 * rows * D + o_m[:, None] * D + o_v[None, :]
    in_m = o_m < rows
    in_o = in_m[:, None] & (o_v[None, :] < D)
    tl.store(p_out, b_dense, mask=in_o)
    tl.store(p_out + rows * D, b_one, mask=in_o)
    tl.store(p_out + 2 * rows * D, b_two, mask=in_o)
    if i_part == 0:
        tl.store(p_max, b_max, mask=in_m)
        tl.store(p_sum, b_sum, mask=in_m)
        tl.store(p_sum + rows, b_sum_one, mask=in_m)
        tl.store(p_sum + 2 * rows, b_sum_two, mask=in_m)


@triton.jit
def _join_splits(p_out, p_sum, p_max, p_error, rows, splits, tiny, D: tl.constexpr, BD: tl.constexpr, BM: tl.constexpr):
    """Grid: (tiles of rows, pairs, lanes). Squared errors of both masks of a pair, summed over a tile of rows."""
    i_pair = tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    o_m = tl.program_id(0) * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    in_m = o_m < rows
    in_o = in_m[:, None] & (o_d[None, :] < D)
    p_max += i_pair * splits * rows + o_m
    p_sum += i_pair * splits * 3 * rows + o_m
    p_out += i_pair * splits * 3 * rows * D + o_m[:, None] * D + o_d[None, :]
    b_top = tl.full([BM], float("-inf"), dtype=tl.float32)
    for i in range(0, splits):
        b_top = tl.maximum(b_top, tl.load(p_max + i * rows, mask=in_m, other=0.0))
    b_dense = tl.zeros([BM, BD], dtype=tl.float32)
    b_one = tl.zeros([BM, BD], dtype=tl.float32)
    b_two = tl.zeros([BM, BD], dtype=tl.float32)
    b_sum = tl.zeros([BM], dtype=tl.float32)
    b_sum_one = tl.zeros([BM], dtype=tl.float32)
    b_sum_two = tl.zeros([BM], dtype=tl.float32)
    for i in range(0, splits):
        b_share = tl.exp2(tl.load(p_max + i * rows, mask=in_m, other=0.0) - b_top)  # [BM]
        p_si = p_sum + i * 3 * rows
        b_sum += b_share * tl.load(p_si, mask=in_m, other=1.0)
        b_sum_one += b_share * tl.load(p_si + rows, mask=in_m, other=1.0)
        b_sum_two += b_share * tl.load(p_si + 2 * rows, mask=in_m, other=1.0)
        b_share = b_share[:, None]
        p_oi = p_out + i * 3 * rows * D
        b_dense += b_share * tl.load(p_oi, mask=in_o, other=0.0)  # [BM, BD]
        b_one += b_share * tl.load(p_oi + rows * D, mask=in_o, other=0.0)
        b_two += b_share * tl.load(p_oi + 2 * rows * D, mask=in_o, other=0.0)
    # A mask that keeps nothing of the mass fp32 can see loses the whole output.
    b_dense = b_dense / b_sum[:, None]
    b_one = b_one / tl.maximum(b_sum_one, tiny)[:, None] - b_dense
    b_two = b_two / tl.maximum(b_sum_two, tiny)[:, None] - b_dense
    p_error += i_pair * 2 * tl.num_programs(0) + tl.program_id(0)
    tl.store(p_error, tl.sum(tl.sum(b_one * b_one, 1), 0))
    tl.store(p_error + tl.num_programs(0), tl.sum(tl.sum(b_two * b_two, 1), 0))


@triton.jit
def _pack_rows(p_keep, p_block, p_kept, rows, blocks, keys, BM: tl.constexpr):
    """Grid: (words, masks). Gathers what each row keeps of 32 keys into one word a row."""
    i_mask = tl.program_id(1).to(tl.int64)
    o_n = tl.program_id(0) * 32 + tl.arange(0, 32)
    in_n = o_n < keys
    b_block = tl.load(p_block + i_mask * keys + o_n, mask=in_n, other=0).to(tl.int32)  # [32]
    p_kept += (i_mask * tl.num_programs(0) + tl.program_id(0)) * rows
    for i in range(0, rows, BM):
        o_m = i + tl.arange(0, BM)
        live = in_n[:, None] & (o_m[None, :] < rows)
        p_bk = p_keep + (i_mask * rows + o_m[None, :]) * blocks + b_block[:, None]
        b_keep = (tl.load(p_bk, mask=live, other=0) != 0).to(tl.int32)  # [32, BM]
        # No two of them share a bit: their sum is their union.
        b_word = tl.sum(b_keep << tl.arange(0, 32)[:, None], 0)  # [BM]
        tl.store(p_kept + o_m, b_word, mask=o_m < rows)


def triton_pack_rows(keep: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
    """Launch the kernel. Args and returns as `dittools.kernels.probe.dispatch.pack_rows`."""
    count, rows, blocks = keep.shape
    keys = block.shape[1]
    words = 2 * triton.cdiv(keys, 64)
    kept = torch.empty(count, words, rows, dtype=torch.int32, device=keep.device)
    keep = keep.contiguous().view(torch.uint8)
    _pack_rows[(words, count)](keep, block.contiguous(), kept, rows, blocks, keys, BM=64, num_warps=2)
    return kept


def triton_probe_errors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: torch.Tensor, scale: float
) -> torch.Tensor:
    """Launch the kernels. Args and returns as `dittools.kernels.probe.dispatch.probe_errors`, already validated."""
    batches, rows, heads, dim = q.shape
    keys, lanes = k.shape[1], batches * heads
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    count = len(kept)
    pairs = triton.cdiv(count, PAIR)
    tile = _tile(q.dtype, rows, dim)
    tiles = triton.cdiv(rows, tile["BM"])
    split, splits = _splits(keys, tile["BN"], tile["PARTS"] * pairs * tiles * lanes, _room(q.device))
    out = torch.empty(lanes, pairs, splits, 3, rows, dim, dtype=torch.float32, device=q.device)
    sums, top = torch.empty_like(out[..., 0]), torch.empty_like(out[:, :, :, 0, :, 0])
    precision = "tf32x3" if q.dtype == torch.float32 else "tf32"
    _probe[(tile["PARTS"] * pairs * tiles, splits, lanes)](
        q, k, v, kept, out, sums, top, scale, rows, keys, kept.shape[1], heads, count, pairs, split,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], D=dim, PRECISION=precision, **tile,
    )  # fmt: skip
    parts = triton.cdiv(rows, 8)
    error = torch.empty(lanes, pairs * PAIR, parts, dtype=torch.float32, device=q.device)
    tiny = torch.finfo(torch.float32).tiny
    _join_splits[(parts, pairs, lanes)](
        out, sums, top, error, rows, splits, tiny, D=dim, BD=tile["BD"], BM=8, num_warps=4
    )
    error = error[:, :count].sum(-1) / (rows * dim)  # [lanes, count]
    return error.T.view(count, batches, heads)


def _tile(dtype: torch.dtype, rows: int, dim: int) -> dict[str, int]:
    """Sizes of a program: three outputs of 64 rows stand in the registers of four warps when each has half of v."""
    full = dtype == torch.float32
    wide = max(16, triton.next_power_of_2(dim))
    parts = max(1, wide // 64)
    return {
        "BM": min(32 if full else 64, max(16, triton.next_power_of_2(rows))),
        "BN": 32 if full else 64,
        "BD": wide,
        "BV": wide // parts,
        "PARTS": parts,
        "num_warps": 4,
        "num_stages": 1 if full else 3,
    }


@lru_cache(maxsize=64)
def _splits(keys: int, tile: int, programs: int, room: int) -> tuple[int, int]:
    """Keys of a split, a multiple of the tile, and how many splits: the fewest that keep the card busy."""
    tiles = triton.cdiv(keys, tile)
    most = max(1, min(WAVES * room // programs, tiles))

    def busy(splits: int) -> float:
        return programs * splits / (triton.cdiv(programs * splits, room) * room)

    splits = next((n for n in range(1, most + 1) if busy(n) >= BUSY), None) or max(range(1, most + 1), key=busy)
    each = triton.cdiv(tiles, splits)
    return each * tile, triton.cdiv(tiles, each)


@lru_cache(maxsize=16)
def _room(device: torch.device) -> int:
    """Programs that a card runs at a time."""
    found = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 8
    return OCCUPANCY * found
