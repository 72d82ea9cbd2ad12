"""Block mass from antidiagonals in Triton: products of folded tokens read where they lie, and their softmax by block.

One pass over the products. A tile of scores needs to know nothing of the rest of its rows: from the top of each row in
the tile, and the sums of exponentials below that top in each key block, a second kernel makes the softmax of the whole
row. Those sums, one number for each row and key block, are small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from dittools.kernels.triton_parts import shared_memory

LOG2_E = tl.constexpr(1.4426950408889634)

# Sums of as many heads as are made at a time.
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True)
class Variant:
    """Rows and columns of a tile of scores, warps, and stages of loads in flight.

    ``lasting`` programs stay on their SM and walk from tile to tile in one loop, so that loads of the next tile run
    under the end of the last; else every tile is a program.
    """

    rows: int = 128
    columns: int = 256
    warps: int = 8
    stages: int = 4
    lasting: bool = False


@triton.jit
def _score_blocks(
    p_q, p_k, p_order, p_sums, p_tops, scale, tokens, tiles, blocks, heads, first_lane, lanes,
    stride_qb, stride_qs, stride_qh, stride_kb, stride_ks, stride_kh, stride_ob,
    D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STRIDE: tl.constexpr, SIZE: tl.constexpr,
    GROUP: tl.constexpr, ORDERED: tl.constexpr, LASTING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Top of each row of a tile, fp32 ``[lanes, T, columns of tiles]``, and sums of 2^(score - top) over each key block
    of SIZE tiles, fp32 ``[lanes, T, N]``.

    Grid: programs; each walks tiles of scores [BM, BN] in steps of the grid. Tiles that run at the same time lie in
    GROUP rows, so that what they read is small enough for the L2 cache.
    """
    rows = tl.cdiv(tiles, BM)
    columns = tl.cdiv(tiles, BN)
    PARTS: tl.constexpr = (D + BK - 1) // BK
    scale = scale * LOG2_E
    o_d = tl.arange(0, BK)
    for i_t in tl.range(tl.program_id(0), rows * columns * lanes, tl.num_programs(0), flatten=LASTING):
        i_lane = (i_t // (rows * columns)).to(tl.int64)
        i_b = (first_lane + i_lane) // heads
        i_h = (first_lane + i_lane) % heads
        p_bq = p_q + i_b * stride_qb + i_h * stride_qh
        p_bk = p_k + i_b * stride_kb + i_h * stride_kh
        i_p = i_t % (rows * columns)
        top = i_p // (GROUP * columns) * GROUP
        height = tl.minimum(rows - top, GROUP)
        i_m = top + i_p % (GROUP * columns) % height
        i_n = i_p % (GROUP * columns) // height
        o_m = (i_m * BM + tl.arange(0, BM)) * STRIDE
        o_n = (i_n * BN + tl.arange(0, BN)) * STRIDE
        b_s = tl.zeros([BM, BN], dtype=tl.float32)
        for i in range(0, STRIDE * PARTS):
            r = i // PARTS
            o_k = i % PARTS * BK + o_d
            # Past the end the last token stands in; whole tiles past it are left out below.
            o_tq = tl.minimum(o_m + (STRIDE - 1 - r), tokens - 1)  # [BM]
            o_tk = tl.minimum(o_n + r, tokens - 1)  # [BN]
            if ORDERED:
                o_tq = tl.load(p_order + i_b * stride_ob + o_tq)
                o_tk = tl.load(p_order + i_b * stride_ob + o_tk)
            p_tq = p_bq + o_tq[:, None].to(tl.int64) * stride_qs + o_k[None, :]
            p_tk = p_bk + o_tk[:, None].to(tl.int64) * stride_ks + o_k[None, :]
            if D % BK == 0:
                b_q = tl.load(p_tq)  # [BM, BK]
                b_k = tl.load(p_tk)  # [BN, BK]
            else:
                b_q = tl.load(p_tq, mask=o_k[None, :] < D, other=0.0)  # [BM, BK]
                b_k = tl.load(p_tk, mask=o_k[None, :] < D, other=0.0)  # [BN, BK]
            b_s = tl.dot(b_q, tl.trans(b_k), b_s, input_precision=PRECISION)  # [BM, BN]
        if (i_n + 1) * BN > tiles:
            b_s = tl.where(i_n * BN + tl.arange(0, BN)[None, :] < tiles, b_s, float("-inf"))
        b_top = tl.max(b_s, 1) * scale  # [BM]
        b_p = tl.exp2(b_s * scale - b_top[:, None])  # [BM, BN]
        b_sum = tl.sum(tl.reshape(b_p, [BM, BN // SIZE, SIZE]), 2)  # [BM, BN / SIZE]
        o_i = i_m * BM + tl.arange(0, BM)
        o_b = i_n * (BN // SIZE) + tl.arange(0, BN // SIZE)
        o_row = i_lane * tiles + o_i
        tl.store(p_tops + o_row * columns + i_n, b_top, mask=o_i < tiles)
        inside = (o_i[:, None] < tiles) & (o_b[None, :] < blocks)
        tl.store(p_sums + o_row[:, None] * blocks + o_b[None, :], b_sum, mask=inside)


@triton.jit
def _load_sums(p_sums, p_tops, o_b, live, blocks, ACROSS: tl.constexpr):
    """Sums of rows in key blocks ``o_b``, and the tops they are under: two of [BR, BC], 0 and -inf past the ends."""
    inside = live[:, None] & (o_b[None, :] < blocks)
    b_sum = tl.load(p_sums + o_b[None, :], mask=inside, other=0.0)
    b_top = tl.load(p_tops + o_b[None, :] // ACROSS, mask=inside, other=float("-inf"))
    return b_sum, b_top


@triton.jit
def _mean_shares(
    p_sums, p_tops, p_mass, tiles, blocks, first_lane,
    SIZE: tl.constexpr, ACROSS: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Grid: (query blocks, lanes). Softmax over key blocks in each row of tiles, mean over the rows of the block.

    ACROSS: key blocks of a tile of scores.
    """
    i_m = tl.program_id(0)
    i_lane = tl.program_id(1).to(tl.int64)
    o_r = tl.arange(0, BR)
    o_i = i_m * SIZE + o_r
    live = (o_r < SIZE) & (o_i < tiles)
    p_sums += (i_lane * tiles + o_i[:, None]) * blocks  # [BR, 1]
    p_tops += (i_lane * tiles + o_i[:, None]) * tl.cdiv(blocks, ACROSS)  # [BR, 1]
    b_max = tl.full([BR], float("-inf"), dtype=tl.float32)
    b_all = tl.zeros([BR], dtype=tl.float32)
    for j in range(0, blocks, BC):
        b_sum, b_top = _load_sums(p_sums, p_tops, j + tl.arange(0, BC), live, blocks, ACROSS)  # [BR, BC]
        b_new = tl.maximum(b_max, tl.max(b_top, 1))  # [BR]
        b_base = tl.where(live, b_new, 0.0)
        b_all = b_all * tl.exp2(b_max - b_base) + tl.sum(b_sum * tl.exp2(b_top - b_base[:, None]), 1)
        b_max = b_new
    count = tl.minimum(tiles - i_m * SIZE, SIZE).to(tl.float32)
    # Rows past the end have no share in anything.
    b_base = tl.where(live, b_max, 0.0)  # [BR]
    b_per = tl.where(live, 1.0 / (b_all * count), 0.0)  # [BR]
    p_mass += ((first_lane + i_lane) * tl.num_programs(0) + i_m) * blocks
    for j in range(0, blocks, BC):
        o_b = j + tl.arange(0, BC)
        b_sum, b_top = _load_sums(p_sums, p_tops, o_b, live, blocks, ACROSS)  # [BR, BC]
        b_share = tl.sum(b_sum * tl.exp2(b_top - b_base[:, None]) * b_per[:, None], 0)  # [BC]
        tl.store(p_mass + o_b, b_share, mask=o_b < blocks)


def triton_antidiagonals(
    q, k, blocks, stride: int, scale: float, order=None, variant: Variant | None = None
) -> torch.Tensor:
    """Launch the kernels for as many heads at a time as `CHUNK_BYTES` holds the sums of.

    As `measure_antidiagonals`, validated. ``scale``: factor on the sum of a tile, its ``1 / s`` included. ``variant``:
    form of the first kernel; by dtype and device when None.
    """
    batches, tokens, heads, dim = q.shape
    tiles, size = triton.cdiv(tokens, stride), blocks.size // stride
    q, k = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k))
    v = variant or _variant(q, order is not None)
    columns = max(v.columns, size)
    inner = next((n for n in _inner(q) if dim % n == 0), max(16, min(64, triton.next_power_of_2(dim))))
    lanes = batches * heads
    step = max(1, min(lanes, CHUNK_BYTES // (4 * tiles * blocks.count)))
    step = triton.cdiv(lanes, triton.cdiv(lanes, step))
    across = triton.cdiv(tiles, columns)
    sums, tops = (torch.empty(step, tiles, n, dtype=torch.float32, device=q.device) for n in (blocks.count, across))
    mass = torch.empty(batches, heads, blocks.count, blocks.count, dtype=torch.float32, device=q.device)
    if order is not None:
        order = order[:, 0].contiguous()
    for first in range(0, lanes, step):
        some = min(step, lanes - first)
        programs = triton.cdiv(tiles, v.rows) * across * some
        if v.lasting:
            programs = min(programs, _processors(q.device))
        _score_blocks[(programs,)](
            q, k, q if order is None else order, sums, tops, scale, tokens, tiles, blocks.count, heads, first, some,
            *q.stride()[:3], *k.stride()[:3], 0 if order is None or order.shape[0] == 1 else tokens,
            D=dim, BM=v.rows, BN=columns, BK=inner, STRIDE=stride, SIZE=size, GROUP=8, ORDERED=order is not None,
            LASTING=v.lasting, PRECISION="tf32x3" if q.dtype == torch.float32 else "tf32",
            num_warps=v.warps, num_stages=v.stages,
        )  # fmt: skip
        _mean_shares[(blocks.count, some)](
            sums, tops, mass, tiles, blocks.count, first,
            SIZE=size, ACROSS=columns // size, BR=max(2, size), BC=128, num_warps=4,
        )  # fmt: skip
    return mass


def _variant(q: torch.Tensor, ordered: bool) -> Variant:
    """The form for the dtype, and for the shared memory of the device."""
    room = shared_memory(q.device)
    if q.dtype == torch.float32:
        return Variant(rows=64, columns=64, warps=4, stages=2)
    if room < 200 << 10:
        return Variant(columns=128, stages=2 if room < 120 << 10 else 3)
    # Tokens are looked up some stages before they are loaded: of these, half are no buffers.
    return Variant(stages=6 if ordered else 4)


def _inner(q: torch.Tensor) -> tuple[int, ...]:
    """Numbers of a token that a step of the product may take, best first."""
    return (32, 16) if q.dtype == torch.float32 else (64, 32, 16)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
