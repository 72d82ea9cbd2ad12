"""Log-sum-exp and measured block mass for Hopper, in Gluon: TMA, async wgmma, one producer and two consumers.

A tile is 256 query rows of one head, 128 of each consumer warpgroup, as two halves of 64. The producer warp copies all
keys past them, BN = 128 a slot of its ring. While the exponentials of one half run, the tensor cores multiply the other
half: there is a product under way at any time, and no need for two programs on a multiprocessor.

Weights are ``2^(scale * s - base)`` with a base that never changes, so that the loop holds one fused multiply-add, one
exponential and one addition a pair. In the mass pass it is the LSE. In the LSE pass it is the row's maximum over the
slot that comes first; a sum then holds at least a 1, and only a logit far above all of those can spoil it: the sum is
infinite, which the caller sees to. Slots are walked from the end: the ragged one comes first, outside the loop.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from dittools.kernels.gluon_names import async_load
from dittools.kernels.hopper_parts import CONSUMERS, LN_2, LOG2_E, WG_ROWS, advance, partial_sums

HALVES = gl.constexpr(2)  # of the rows of a consumer
GROUP = gl.constexpr(8)  # key blocks whose sums over a row wait until they are added up over the rows


@gluon.jit
def _produce(
    d_q, d_k, s_q, s_k, bars, i_b, i_h, i_tile, slots, D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr
):
    """The producer warp: Q of the tile, and K from its end."""
    q_full, k_full, k_empty = bars
    mbarrier.expect(q_full.index(0), CONSUMERS * HALVES * WG_ROWS * D * 2)
    for i in gl.static_range(CONSUMERS * HALVES):
        o_q = (i_tile * (CONSUMERS * HALVES) + i) * WG_ROWS
        async_load(d_q, [i_b, i_h, o_q, 0], q_full.index(0), s_q.index(i))
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)
    for j in range(0, slots):
        mbarrier.wait(k_empty.index(stage), phase ^ 1)
        mbarrier.expect(k_full.index(stage), BN * D * 2)
        o_k = (slots - 1 - j) * BN
        async_load(d_k, [i_b, i_h, o_k, 0], k_full.index(stage), s_k.index(stage))
        stage, phase = advance(stage, phase, STAGES)


@gluon.jit
def _alive(b_s, i_slot, o_n, keys, BN: gl.constexpr):
    """Logits of a slot ``[64, BN]`` with -inf for keys past the end."""
    return gl.where((i_slot * BN + o_n < keys)[None, :], b_s, float("-inf"))


@gluon.jit
def _silent(b_lse):
    """The base of rows with this LSE. One at -inf had no key and counts nothing: its base is +inf."""
    return gl.where(b_lse == float("-inf"), float("inf"), b_lse) * LOG2_E


@gluon.jit
def _halves(b_x, COLUMNS: gl.constexpr):
    """The left and the right half of ``[64, COLUMNS]``."""
    return gl.split(b_x.reshape([WG_ROWS, 2, COLUMNS // 2]).permute((0, 2, 1)))


@gluon.jit
def _weigh(b_s, b_base, scale, PARTS: gl.constexpr, BN: gl.constexpr, SUMS: gl.constexpr):
    """Weights of a slot: `partial_sums` of each of its one or two key blocks, ``[64, 8]``."""
    b_p = gl.exp2(b_s * scale - b_base[:, None])  # [64, BN]
    if PARTS == 1:
        b_sum = partial_sums(b_p, BN, SUMS)
        return b_sum, b_sum
    b_left, b_right = _halves(b_p, BN)
    return partial_sums(b_left, BN // 2, SUMS), partial_sums(b_right, BN // 2, SUMS)


@gluon.jit
def _keep(b_sums, b_first, b_second, i_slot, o_g, PARTS: gl.constexpr):
    """Adds what `_weigh` gave to the columns of its key blocks, ``[64, GROUP]``."""
    i_block = i_slot * PARTS % GROUP
    b_sums += gl.where((o_g == i_block)[None, :], gl.sum(b_first, 1)[:, None], 0.0)
    if PARTS == 2:
        b_sums += gl.where((o_g == i_block + 1)[None, :], gl.sum(b_second, 1)[:, None], 0.0)
    return b_sums


@gluon.jit
def _store(p_mass, i_m, query_blocks, i_block, key_blocks, b_sums, o_g):
    """Store GROUP key blocks of a query block, from ``i_block`` on."""
    o_block = i_block + o_g
    gl.store(p_mass + i_m.to(gl.int64) * key_blocks + o_block, gl.sum(b_sums, 0),
             mask=(o_block < key_blocks) & (i_m < query_blocks))  # fmt: skip


@gluon.jit
def _turn(
    s_0, s_1, s_k, bars, b_0, b_1, bases, sums, i_slot, stage, phase, out, o_g, o_n, keys, scale, BN: gl.constexpr,
    QUERY_BLOCK: gl.constexpr, KEY_BLOCK: gl.constexpr, STAGES: gl.constexpr, TURN: gl.constexpr, MASS: gl.constexpr,
    FIRST: gl.constexpr,
):  # fmt: skip
    """TURN slots, from ``i_slot`` down, of both halves; nothing is under way before and after.

    ``b_0`` and ``b_1`` pass through so that both halves' logits stay in their registers.
    """
    _, k_full, k_empty = bars
    p_mass, i_m, query_blocks, key_blocks = out
    PARTS: gl.constexpr = BN // KEY_BLOCK
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    b_base0, b_base1 = bases
    b_sum0, b_sum1 = sums
    mbarrier.wait(k_full.index(stage), phase)
    b_0 = warpgroup_mma(s_0, s_k.index(stage).permute((1, 0)), b_0, use_acc=False, is_async=True)
    for u in gl.static_range(TURN):
        # Waits that pass at once, as some below. Their branch keeps ptxas, which moves instructions and waits for
        # products freely within a basic block, from mixing the work of two halves: it lacks the registers for that.
        if u > 0:
            mbarrier.wait(k_full.index(stage), phase)
        b_1 = warpgroup_mma(s_1, s_k.index(stage).permute((1, 0)), b_1, use_acc=False, is_async=True)
        b_0 = warpgroup_mma_wait(1, deps=[b_0])  # [64, BN]
        if FIRST:
            b_0 = _alive(b_0, i_slot, o_n, keys, BN)
            if not MASS:
                b_base0 = gl.max(b_0, 1) * scale  # [64]
        b_first0, b_second0 = _weigh(b_0, b_base0, scale, PARTS, BN, SUMS)

        was = stage
        if u + 1 < TURN:
            stage, phase = advance(stage, phase, STAGES)
            mbarrier.wait(k_full.index(stage), phase)
            b_0 = warpgroup_mma(s_0, s_k.index(stage).permute((1, 0)), b_0, use_acc=False, is_async=True)
            b_1 = warpgroup_mma_wait(1, deps=[b_1])  # [64, BN]
        else:
            mbarrier.wait(k_full.index(stage), phase)
            stage, phase = advance(stage, phase, STAGES)
            b_1 = warpgroup_mma_wait(0, deps=[b_1])
        mbarrier.arrive(k_empty.index(was))
        if FIRST:
            b_1 = _alive(b_1, i_slot, o_n, keys, BN)
            if not MASS:
                b_base1 = gl.max(b_1, 1) * scale
        b_first1, b_second1 = _weigh(b_1, b_base1, scale, PARTS, BN, SUMS)

        if not MASS:
            b_sum0 += b_first0
            b_sum1 += b_first1
        else:
            if QUERY_BLOCK == WG_ROWS:
                b_sum0 = _keep(b_sum0, b_first0, b_second0, i_slot, o_g, PARTS)
                b_sum1 = _keep(b_sum1, b_first1, b_second1, i_slot, o_g, PARTS)
            else:
                b_sum0 = _keep(b_sum0, b_first0 + b_first1, b_second0 + b_second1, i_slot, o_g, PARTS)
            if i_slot * PARTS % GROUP == 0:
                _store(p_mass, i_m, query_blocks, i_slot * PARTS, key_blocks, b_sum0, o_g)
                b_sum0 = gl.zeros([WG_ROWS, GROUP], gl.float32, SUMS)
                if QUERY_BLOCK == WG_ROWS:
                    _store(p_mass, i_m + 1, query_blocks, i_slot * PARTS, key_blocks, b_sum1, o_g)
                    b_sum1 = gl.zeros([WG_ROWS, GROUP], gl.float32, SUMS)
        i_slot -= 1
    return b_0, b_1, (b_base0, b_base1), (b_sum0, b_sum1), stage, phase


@gluon.jit
def _consume(
    half: gl.constexpr, s_q, s_k, bars, p_lse, p_mass, i_b, i_h, i_tile, slots, queries, keys, heads, query_blocks,
    key_blocks, strides, scale, D: gl.constexpr, BN: gl.constexpr, QUERY_BLOCK: gl.constexpr, KEY_BLOCK: gl.constexpr,
    STAGES: gl.constexpr, TURN: gl.constexpr, MASS: gl.constexpr,
):  # fmt: skip
    """One consumer warpgroup: rows ``half * 128 ...`` of the tile."""
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)

    o_n = gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
    o_g = gl.arange(0, GROUP, gl.SliceLayout(0, SUMS))
    i_128 = i_tile * CONSUMERS + half
    o_m0 = i_128 * (HALVES * WG_ROWS) + gl.arange(0, WG_ROWS, S_ROWS)
    o_m1 = o_m0 + WG_ROWS
    s_0, s_1 = s_q.index(half * HALVES), s_q.index(half * HALVES + 1)
    scale = scale * LOG2_E
    i_lane = (i_b * heads + i_h).to(gl.int64)
    b_base0 = gl.zeros([WG_ROWS], gl.float32, S_ROWS)
    b_base1 = gl.zeros([WG_ROWS], gl.float32, S_ROWS)
    if MASS:
        p_lse += i_b.to(gl.int64) * strides[0] + i_h.to(gl.int64) * strides[1]
        b_base0 = _silent(gl.load(p_lse + o_m0.to(gl.int64) * strides[2], mask=o_m0 < queries, other=float("inf")))
        b_base1 = _silent(gl.load(p_lse + o_m1.to(gl.int64) * strides[2], mask=o_m1 < queries, other=float("inf")))
        p_mass += i_lane * query_blocks * key_blocks
    out = (p_mass, i_128 * (HALVES * WG_ROWS // QUERY_BLOCK), query_blocks, key_blocks)
    bases = (b_base0, b_base1)
    # LSE pass: sums over the keys that one thread holds. Mass pass: sums of key blocks, see `_keep`.
    b_sum0 = gl.zeros([WG_ROWS, 8], gl.float32, SUMS)
    b_sum1 = gl.zeros([WG_ROWS, 8], gl.float32, SUMS)
    b_0 = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
    b_1 = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)

    mbarrier.wait(bars[0].index(0), 0)
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)
    b_0, b_1, bases, sums, stage, phase = _turn(
        s_0, s_1, s_k, bars, b_0, b_1, bases, (b_sum0, b_sum1), slots - 1, stage, phase, out, o_g, o_n, keys, scale,
        BN, QUERY_BLOCK, KEY_BLOCK, STAGES, 1, MASS, True,
    )  # fmt: skip
    left = slots - 1
    for _j in range(0, (slots - 1) % TURN):
        b_0, b_1, bases, sums, stage, phase = _turn(
            s_0, s_1, s_k, bars, b_0, b_1, bases, sums, left - 1, stage, phase, out, o_g, o_n, keys, scale,
            BN, QUERY_BLOCK, KEY_BLOCK, STAGES, 1, MASS, False,
        )  # fmt: skip
        left -= 1
    for j in range(0, left // TURN):
        b_0, b_1, bases, sums, stage, phase = _turn(
            s_0, s_1, s_k, bars, b_0, b_1, bases, sums, left - 1 - j * TURN, stage, phase, out, o_g, o_n, keys, scale,
            BN, QUERY_BLOCK, KEY_BLOCK, STAGES, TURN, MASS, False,
        )  # fmt: skip

    if not MASS:
        p_lse += i_lane * queries
        b_total0 = gl.convert_layout(gl.sum(sums[0], 1), S_ROWS)  # [64]
        b_total1 = gl.convert_layout(gl.sum(sums[1], 1), S_ROWS)
        gl.store(p_lse + o_m0, (bases[0] + gl.log2(b_total0)) * LN_2, mask=o_m0 < queries)
        gl.store(p_lse + o_m1, (bases[1] + gl.log2(b_total1)) * LN_2, mask=o_m1 < queries)


# Whether a number is 1 or divides by 16 helps nowhere here, and would only compile the kernel again.
NUMBERS = ["queries", "keys", "heads", "tiles", "query_blocks", "key_blocks", "stride_lb", "stride_lh", "stride_ls"]


@gluon.jit(do_not_specialize=NUMBERS)
def block_mass_forward(
    d_q, d_k, p_lse, p_mass, scale, queries, keys, heads, tiles, query_blocks, key_blocks,
    stride_lb, stride_lh, stride_ls,
    D: gl.constexpr, BN: gl.constexpr, QUERY_BLOCK: gl.constexpr, KEY_BLOCK: gl.constexpr, STAGES: gl.constexpr,
    TURN: gl.constexpr, MASS: gl.constexpr,
):  # fmt: skip
    """Grid: one program a tile of 256 rows. If MASS it reads the LSE and writes the mass, else it writes the LSE."""
    DTYPE: gl.constexpr = d_q.dtype
    RING: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    BAR: gl.constexpr = mbarrier.MBarrierLayout()
    s_q = gl.allocate_shared_memory(DTYPE, [CONSUMERS * HALVES, WG_ROWS, D], RING)
    s_k = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], RING)
    q_full = gl.allocate_shared_memory(gl.int64, [1, 1], BAR)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    mbarrier.init(q_full.index(0), 1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), 1)
        mbarrier.init(k_empty.index(i), CONSUMERS)
    fence_async_shared()

    bars = (q_full, k_full, k_empty)
    # Tiles run fastest: those in flight share one head's K in L2.
    i_lane = gl.program_id(0) // tiles
    i_tile = gl.program_id(0) % tiles
    i_b, i_h = i_lane // heads, i_lane % heads
    slots = (keys + BN - 1) // BN
    strides = (stride_lb, stride_lh, stride_ls)
    gl.warp_specialize(
        [
            (_consume, (
                0, s_q, s_k, bars, p_lse, p_mass, i_b, i_h, i_tile, slots, queries, keys, heads, query_blocks,
                key_blocks, strides, scale, D, BN, QUERY_BLOCK, KEY_BLOCK, STAGES, TURN, MASS,
            )),
            (_consume, (
                1, s_q, s_k, bars, p_lse, p_mass, i_b, i_h, i_tile, slots, queries, keys, heads, query_blocks,
                key_blocks, strides, scale, D, BN, QUERY_BLOCK, KEY_BLOCK, STAGES, TURN, MASS,
            )),
            (_produce, (d_q, d_k, s_q, s_k, bars, i_b, i_h, i_tile, slots, D, BN, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
