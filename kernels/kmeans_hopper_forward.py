"""The assignment of k-means for Hopper, in Gluon: TMA, async wgmma, one producer and two consumers.

A tile is 256 points of one lane, 128 of each consumer warpgroup, as two halves of 64. The producer warp copies all
centroids past them, BN = 128 a slot of its ring. While one half's scores are compared, the tensor cores multiply the
other half. A program stays and takes one tile after the other; the points of the next are on their way meanwhile.

Scores of a slot are compared part by part, COLUMNS centroids wide: a thread keeps the best score of each column of a
part, and which part of which slot gave it. One reduction across columns follows the last slot.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from dittools.kernels.hopper_forward import CONSUMERS, WG_ROWS, _advance
from dittools.kernels.hopper_mass_forward import HALVES, _halves

COLUMNS = gl.constexpr(8)
NOBODY = gl.constexpr(0x7FFFFFFF)


@gluon.jit
def _produce(
    d_x, d_c, s_x, s_c, bars, tiles, all_tiles, heads, slots,
    D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, BUFFERS: gl.constexpr,
):  # fmt: skip
    """The producer warp: the points of each tile, and all centroids of its lane."""
    x_full, x_empty, c_full, c_empty = bars
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)
    buffer, x_phase = gl.to_tensor(0), gl.to_tensor(0)
    for i in range(gl.program_id(0), all_tiles, gl.num_programs(0)):
        i_lane, i_tile = i // tiles, i % tiles
        mbarrier.wait(x_empty.index(buffer), x_phase ^ 1)
        mbarrier.expect(x_full.index(buffer), CONSUMERS * HALVES * WG_ROWS * D * 2)
        for h in gl.static_range(CONSUMERS * HALVES):
            o_x = (i_tile * (CONSUMERS * HALVES) + h) * WG_ROWS
            tma.async_copy_global_to_shared(
                d_x, [i_lane // heads, i_lane % heads, o_x, 0], x_full.index(buffer),
                s_x.index(buffer * (CONSUMERS * HALVES) + h),
            )  # fmt: skip
        buffer, x_phase = _advance(buffer, x_phase, BUFFERS)
        for j in range(0, slots):
            mbarrier.wait(c_empty.index(stage), phase ^ 1)
            mbarrier.expect(c_full.index(stage), BN * D * 2)
            tma.async_copy_global_to_shared(d_c, [i_lane, 0, j * BN, 0], c_full.index(stage), s_c.index(stage))
            stage, phase = _advance(stage, phase, STAGES)


@gluon.jit
def _compare(b_best, b_at, b_s, i_part, BEST: gl.constexpr, N: gl.constexpr):
    """The better of the best so far ``[64, COLUMNS]`` and scores ``[64, N]``, whose first part is number ``i_part``.

    Of equal ones what came first stays, and so it does where a score is not a number.
    """
    if N == COLUMNS:
        b_part = gl.convert_layout(b_s, BEST, assert_trivial=True)
        b_better = b_part > b_best
        return gl.where(b_better, b_part, b_best), gl.where(b_better, i_part, b_at)
    else:
        b_left, b_right = _halves(b_s, N)
        b_best, b_at = _compare(b_best, b_at, b_left, i_part, BEST, N // 2)
        return _compare(b_best, b_at, b_right, i_part + N // 2 // COLUMNS, BEST, N // 2)


@gluon.jit
def _pin(b_x):
    """The same, made here: no instruction, but one that compilers do not move past a wait, nor what it needs."""
    return gl.inline_asm_elementwise("", "=r,0", [b_x], b_x.dtype, False, 1)


@gluon.jit
def _turn(
    s_0, s_1, s_c, bars, b_0, b_1, b_best0, b_at0, b_best1, b_at1, p_half, i_slot, stage, phase, o_n,
    BEST: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """TURN slots, from ``i_slot`` on, of both halves; nothing is under way before and after.

    ``b_0`` and ``b_1`` pass through so that both halves' scores stay in their registers.
    """
    _, _, c_full, c_empty = bars
    PARTS: gl.constexpr = BN // COLUMNS
    mbarrier.wait(c_full.index(stage), phase)
    b_0 = warpgroup_mma(s_0, s_c.index(stage).permute((1, 0)), b_0, use_acc=False, is_async=True)
    for u in gl.static_range(TURN):
        # Waits that pass at once, as some below. Their branch keeps ptxas, which moves instructions and waits for
        # products freely within a basic block, from mixing the work of two halves: it lacks the registers for that.
        if u > 0:
            mbarrier.wait(c_full.index(stage), phase)
        b_1 = warpgroup_mma(s_1, s_c.index(stage).permute((1, 0)), b_1, use_acc=False, is_async=True)
        b_half = gl.load(p_half + i_slot * BN + o_n)  # [BN]
        b_0 = warpgroup_mma_wait(1, deps=[b_0])  # [64, BN]
        b_best0, b_at0 = _compare(b_best0, b_at0, b_0 - b_half[None, :], i_slot * PARTS, BEST, BN)
        b_best0, b_at0 = _pin(b_best0), _pin(b_at0)

        was = stage
        if u + 1 < TURN:
            stage, phase = _advance(stage, phase, STAGES)
            mbarrier.wait(c_full.index(stage), phase)
            b_0 = warpgroup_mma(s_0, s_c.index(stage).permute((1, 0)), b_0, use_acc=False, is_async=True)
            b_1 = warpgroup_mma_wait(1, deps=[b_1])  # [64, BN]
        else:
            mbarrier.wait(c_full.index(stage), phase)
            stage, phase = _advance(stage, phase, STAGES)
            b_1 = warpgroup_mma_wait(0, deps=[b_1])
        mbarrier.arrive(c_empty.index(was))
        b_best1, b_at1 = _compare(b_best1, b_at1, b_1 - b_half[None, :], i_slot * PARTS, BEST, BN)
        b_best1, b_at1 = _pin(b_best1), _pin(b_at1)
        i_slot += 1
    return b_0, b_1, b_best0, b_at0, b_best1, b_at1, stage, phase


@gluon.jit
def _keep_labels(p_label, b_best, b_at, o_m, points, BEST: gl.constexpr):
    """Store the label of each point: of columns that tie, the lowest."""
    b_top = gl.max(b_best, 1)  # [64]
    o_c = gl.arange(0, COLUMNS, gl.SliceLayout(0, BEST))
    b_label = gl.where(b_best == b_top[:, None], b_at * COLUMNS + o_c[None, :], NOBODY)
    gl.store(p_label + o_m, -gl.max(-b_label, 1), mask=o_m < points)


@gluon.jit
def _consume(
    half: gl.constexpr, s_x, s_c, bars, p_half, p_label, points, tiles, all_tiles, slots,
    D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, BUFFERS: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """One consumer warpgroup: points ``half * 128 ...`` of each tile."""
    x_full, x_empty, _, _ = bars
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    BEST: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, COLUMNS, 16])

    o_n = gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
    o_row = gl.arange(0, WG_ROWS, gl.SliceLayout(1, BEST))
    b_0 = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
    b_1 = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)
    buffer, x_phase = gl.to_tensor(0), gl.to_tensor(0)
    for i in range(gl.program_id(0), all_tiles, gl.num_programs(0)):
        i_lane, i_tile = i // tiles, i % tiles
        p_its = p_half + i_lane * slots * BN
        i_x = (buffer * CONSUMERS + half) * HALVES
        s_0, s_1 = s_x.index(i_x), s_x.index(i_x + 1)
        b_at0 = gl.zeros([WG_ROWS, COLUMNS], gl.int32, BEST)
        b_at1 = gl.zeros([WG_ROWS, COLUMNS], gl.int32, BEST)
        b_best0 = gl.zeros([WG_ROWS, COLUMNS], gl.float32, BEST) - float("inf")
        b_best1 = gl.zeros([WG_ROWS, COLUMNS], gl.float32, BEST) - float("inf")
        mbarrier.wait(x_full.index(buffer), x_phase)
        done = slots % TURN
        if TURN > 1:
            for j in range(0, done):
                b_0, b_1, b_best0, b_at0, b_best1, b_at1, stage, phase = _turn(
                    s_0, s_1, s_c, bars, b_0, b_1, b_best0, b_at0, b_best1, b_at1, p_its, j, stage, phase, o_n,
                    BEST, BN, STAGES, 1,
                )  # fmt: skip
        for j in range(0, slots // TURN):
            b_0, b_1, b_best0, b_at0, b_best1, b_at1, stage, phase = _turn(
                s_0, s_1, s_c, bars, b_0, b_1, b_best0, b_at0, b_best1, b_at1, p_its, done + j * TURN, stage, phase,
                o_n, BEST, BN, STAGES, TURN,
            )  # fmt: skip
        mbarrier.arrive(x_empty.index(buffer))
        buffer, x_phase = _advance(buffer, x_phase, BUFFERS)
        p_its_labels = p_label + i_lane.to(gl.int64) * points
        o_m = (i_tile * CONSUMERS + half) * (HALVES * WG_ROWS) + o_row
        _keep_labels(p_its_labels, b_best0, b_at0, o_m, points, BEST)
        _keep_labels(p_its_labels, b_best1, b_at1, o_m + WG_ROWS, points, BEST)


# Whether a number is 1 or divides by 16 helps nowhere here, and would only compile the kernel again.
NUMBERS = ["points", "tiles", "all_tiles", "heads", "slots"]


@gluon.jit(do_not_specialize=NUMBERS)
def nearest_forward(
    d_x, d_c, p_half, p_label, points, tiles, all_tiles, heads, slots,
    D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, BUFFERS: gl.constexpr, TURN: gl.constexpr,
):  # fmt: skip
    """Grid: any number of programs, which take the tiles of 256 points in turn."""
    DTYPE: gl.constexpr = d_x.dtype
    TILE: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    BAR: gl.constexpr = mbarrier.MBarrierLayout()
    s_x = gl.allocate_shared_memory(DTYPE, [BUFFERS * CONSUMERS * HALVES, WG_ROWS, D], TILE)
    s_c = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], TILE)
    x_full = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], BAR)
    x_empty = gl.allocate_shared_memory(gl.int64, [BUFFERS, 1], BAR)
    c_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    c_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    for i in gl.static_range(BUFFERS):
        mbarrier.init(x_full.index(i), 1)
        mbarrier.init(x_empty.index(i), CONSUMERS)
    for i in gl.static_range(STAGES):
        mbarrier.init(c_full.index(i), 1)
        mbarrier.init(c_empty.index(i), CONSUMERS)
    fence_async_shared()

    bars = (x_full, x_empty, c_full, c_empty)
    gl.warp_specialize(
        [
            (_consume, (
                0, s_x, s_c, bars, p_half, p_label, points, tiles, all_tiles, slots, D, BN, STAGES, BUFFERS, TURN,
            )),
            (_consume, (
                1, s_x, s_c, bars, p_half, p_label, points, tiles, all_tiles, slots, D, BN, STAGES, BUFFERS, TURN,
            )),
            (_produce, (
                d_x, d_c, s_x, s_c, bars, tiles, all_tiles, heads, slots, D, BN, STAGES, BUFFERS,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
