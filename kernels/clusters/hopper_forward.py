"""Attention between clusters of any size, forward, for Hopper, in Gluon: the design of `hopper_forward`, other lists.

A tile is up to 128 query rows of one cluster. Ring slots of 128 keys are filled with *pieces*: stretches of 64, 32, 16
or 8 keys of one kept cluster, at any position. Swizzled slots lie in shared memory as panels of 64 columns, in each of
which a piece is contiguous: one TMA box. Each panel of K and of V has a producer warp, as small pieces are many. A list
holds its pieces largest first, so that none straddles two slots; last come the rests of clusters, pieces of which not
every key lives. As there, lists are walked from their end: slots with dead keys come first, and mask them.

The rows of a tile are gathered through the order by the warpgroup that attends them, and scattered by it: each is
moved once. A warpgroup without a live row only hands the slots back.
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

from dittools.kernels.gluon_names import async_load, reinterpret
from dittools.kernels.hopper_parts import CONSUMERS, LN_2, LOG2_E, WG_ROWS, advance, partial_sums

UNIT = gl.constexpr(8)  # keys in the smallest piece; how many of them live is one number of four bits
ALL_ALIVE = gl.constexpr(-2004318072)  # 8 in each four bits
LANES = gl.constexpr(gl.BlockedLayout([1], [32], [1], [0]))


@gluon.jit
def _tile(p_tiles, tiles, heads, query_clusters, first_lane, strides):
    """What a program attends: batch, head, first position, live rows, row of the lists."""
    i_here = gl.program_id(0) // tiles
    # Tiles run fastest: those in flight share one head's K and V in L2.
    i_tile = gl.program_id(0) % tiles
    i_lane = i_here + first_lane
    i_b, i_h = i_lane // heads, i_lane % heads
    p_tile = p_tiles + i_b.to(gl.int64) * strides[0] + i_h.to(gl.int64) * strides[1] + i_tile * 3
    i_list = i_here.to(gl.int64) * query_clusters + gl.load(p_tile)
    return i_b, i_h, gl.load(p_tile + 1), gl.load(p_tile + 2), i_list


@gluon.jit
def _sections(p_counts, i_list):
    """Of a list: pieces of 64, and of 64 up to 32 and to 16 keys; the units where these end; all whole and all units.

    A unit is the size of the smallest piece.
    """
    p_counts += i_list * 5
    n_64, n_32, n_16 = gl.load(p_counts), gl.load(p_counts + 1), gl.load(p_counts + 2)
    n_whole, n_all = gl.load(p_counts + 3), gl.load(p_counts + 4)
    e_64 = n_64 * (64 // UNIT)
    e_32 = e_64 + (n_32 - n_64) * (32 // UNIT)
    e_16 = e_32 + (n_16 - n_32) * (16 // UNIT)
    whole = e_16 + n_whole - n_16
    return (n_64, n_32, n_16), (e_64, e_32, e_16), whole, whole + n_all - n_whole


@gluon.jit
def _slots(rows, units, UNITS: gl.constexpr):
    """Slots of a list: at least one, which may hold no live key; none for a void tile."""
    return gl.where(rows > 0, gl.maximum((units + UNITS - 1) // UNITS, 1), 0)


@gluon.jit
def _rows_of(p_list, i_slot, pieces, ends, units, keys, UNITS: gl.constexpr):
    """First key of the piece of each unit of a slot ``[32]``; past the end of the keys where there is none."""
    o = gl.arange(0, 32, LANES)
    o_unit = i_slot * UNITS + o
    o_32 = pieces[0] + (o_unit - ends[0]) // (32 // UNIT)
    o_16 = pieces[1] + (o_unit - ends[1]) // (16 // UNIT)
    o_piece = gl.where(o_unit < ends[2], o_16, pieces[2] + o_unit - ends[2])
    o_piece = gl.where(o_unit < ends[1], o_32, o_piece)
    o_piece = gl.where(o_unit < ends[0], o_unit // (64 // UNIT), o_piece)
    return gl.load(p_list + o_piece, mask=(i_slot >= 0) & (o < UNITS) & (o_unit < units), other=keys)


@gluon.jit
def _fill(
    descs, s_rings, bar, b_row, i_slot, ends, i_b, i_h, i_panel, panel: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    """Issue the copies of one panel of a slot of K or V, whose pieces begin at the keys ``b_row``."""
    UNITS: gl.constexpr = BN // UNIT
    COLUMN: gl.constexpr = panel * 64
    # Units in a piece of 64 keys, as a shift: compilers may make one piece of code of all sizes, and then divide by
    # what is no constant.
    OF_64: gl.constexpr = 3
    mbarrier.expect(bar, BN * 64 * 2)
    o = gl.arange(0, 32, LANES)
    i = gl.to_tensor(0)
    while i < UNITS:
        i_row = gl.sum(gl.where(o == i, b_row, 0), 0)
        i_unit = i_slot * UNITS + i
        i_to = i_panel * UNITS + i
        if i_unit < ends[0]:
            async_load(descs[0], [i_b, i_h, i_row, COLUMN], bar, s_rings[0].index(i_to >> OF_64))
            i += 64 // UNIT
        elif i_unit < ends[1]:
            async_load(descs[1], [i_b, i_h, i_row, COLUMN], bar, s_rings[1].index(i_to >> (OF_64 - 1)))
            i += 32 // UNIT
        elif i_unit < ends[2]:
            async_load(descs[2], [i_b, i_h, i_row, COLUMN], bar, s_rings[2].index(i_to >> (OF_64 - 2)))
            i += 16 // UNIT
        else:
            async_load(descs[3], [i_b, i_h, i_row, COLUMN], bar, s_rings[3].index(i_to))
            i += 1


@gluon.jit
def _produce(
    panel: gl.constexpr, descs, s_rings, full, empty, task, D: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """A producer warp: one panel of 64 columns of K or of V, slot by slot."""
    p_tiles, p_counts, p_list, tiles, heads, query_clusters, entries, keys, first_lane, strides = task
    UNITS: gl.constexpr = BN // UNIT
    i_b, i_h, _, rows, i_list = _tile(p_tiles, tiles, heads, query_clusters, first_lane, strides)
    pieces, ends, _, units = _sections(p_counts, i_list)
    p_list += i_list * entries
    slots = _slots(rows, units, UNITS)
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)
    b_row = _rows_of(p_list, slots - 1, pieces, ends, units, keys, UNITS)
    for j in range(0, slots):
        # The slot after is looked up now, so that its pieces are there when their copies are due.
        b_after = _rows_of(p_list, slots - 2 - j, pieces, ends, units, keys, UNITS)
        mbarrier.wait(empty.index(stage), phase ^ 1)
        i_panel = stage * (D // 64) + panel
        _fill(descs, s_rings, full.index(stage), b_row, slots - 1 - j, ends, i_b, i_h, i_panel, panel, BN)
        stage, phase = advance(stage, phase, STAGES)
        b_row = b_after


@gluon.jit
def _token(p_order, position, mask, HAS_ORDER: gl.constexpr):
    """Tokens at positions, int64; without an order they are the same."""
    if HAS_ORDER:
        position = gl.load(p_order + position, mask=mask, other=0)
    return position.to(gl.int64)


@gluon.jit
def _live_keys(p_live, i_slot):
    """Live keys of each group of a slot, two words. ``i_slot``: among those with dead keys, below 0 of one without."""
    low = gl.load(p_live + i_slot * 2, mask=i_slot >= 0, other=ALL_ALIVE)
    return low, gl.load(p_live + i_slot * 2 + 1, mask=i_slot >= 0, other=ALL_ALIVE)


@gluon.jit
def _without_dead(b_s, low, high, o_n):
    """Logits of a slot ``[64, BN]`` with -inf for its dead keys."""
    o_group = o_n // UNIT
    count = gl.where(o_group < 8, low, high) >> (o_group % 8 * 4) & 15
    return gl.where((o_n % UNIT < count)[None, :], b_s, float("-inf"))


@gluon.jit
def _consume(
    half: gl.constexpr, p_q, p_out, p_lse, s_q, s_k, s_v, bars, task, queries, scale,
    D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, HAS_ORDER: gl.constexpr,
):  # fmt: skip
    """One consumer warpgroup: rows ``half * 64 ...`` of the tile."""
    p_tiles, p_counts, p_live, p_order, tiles, heads, query_clusters, live_slots, first_lane, strides = task
    k_full, k_empty, v_full, v_empty = bars
    UNITS: gl.constexpr = BN // UNIT
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    SUM_ROWS: gl.constexpr = gl.SliceLayout(1, SUMS)
    ROWS: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    DTYPE: gl.constexpr = s_q.dtype

    i_b, i_h, start, rows, i_list = _tile(p_tiles, tiles, heads, query_clusters, first_lane, strides)
    _pieces, _ends, whole, units = _sections(p_counts, i_list)
    slots = _slots(rows, units, UNITS)
    start += half * WG_ROWS
    rows -= half * WG_ROWS
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)  # of K; V is one slot behind
    v_stage, v_phase = gl.to_tensor(0), gl.to_tensor(0)
    o_b, o_h = i_b.to(gl.int64), i_h.to(gl.int64)
    p_order += o_b * strides[2] + o_h * strides[3]
    if rows > 0:
        full = whole // UNITS
        p_live += i_list * (live_slots * 2)  # of the slot after the full ones, and those after it
        o_m = gl.arange(0, WG_ROWS, gl.SliceLayout(1, ROWS))
        o_d = gl.arange(0, D, gl.SliceLayout(0, ROWS))
        o_token = _token(p_order, start + o_m, o_m < rows, HAS_ORDER)
        p_mine = p_q + o_b * strides[4] + o_h * strides[6]
        b_rows = gl.load(p_mine + (o_token * strides[5])[:, None] + o_d[None, :], mask=(o_m < rows)[:, None], other=0.0)
        s_mine = s_q.index(half)
        s_mine.store(b_rows)
        fence_async_shared()

        o_n = gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
        scale = scale * LOG2_E
        low, high = _live_keys(p_live, slots - 1 - full)
        mbarrier.wait(k_full.index(stage), phase)
        b_s = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
        b_s = warpgroup_mma(s_mine, s_k.index(stage).permute((1, 0)), b_s, use_acc=False, is_async=True)
        b_s = warpgroup_mma_wait(0, deps=[b_s])  # [64, BN]
        mbarrier.arrive(k_empty.index(stage))
        stage, phase = advance(stage, phase, STAGES)

        b_s = _without_dead(b_s, low, high, o_n)
        b_max = gl.max(b_s, 1) * scale  # [64]
        # An empty list leaves no live key, and -inf minus -inf is not a number.
        b_base = gl.where(b_max == float("-inf"), 0.0, b_max)
        b_p = gl.exp2(b_s * scale - b_base[:, None])  # [64, BN]
        b_sum = partial_sums(b_p, BN, SUMS)  # [64, 8]
        b_w = gl.convert_layout(b_p.to(DTYPE), P_LAYOUT, assert_trivial=True)  # [64, BN]
        b_acc = gl.zeros([WG_ROWS, D], gl.float32, O_LAYOUT)

        for j in range(1, slots):
            i_dead = slots - 1 - j - full
            low, high = _live_keys(p_live, i_dead)
            mbarrier.wait(k_full.index(stage), phase)
            b_s = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
            b_s = warpgroup_mma(s_mine, s_k.index(stage).permute((1, 0)), b_s, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(v_stage), v_phase)
            b_acc = warpgroup_mma(b_w, s_v.index(v_stage), b_acc, is_async=True)
            b_s = warpgroup_mma_wait(1, deps=[b_s])  # [64, BN]
            mbarrier.arrive(k_empty.index(stage))
            stage, phase = advance(stage, phase, STAGES)

            if i_dead >= 0:
                b_s = _without_dead(b_s, low, high, o_n)
            # Each slot after the first has a live key, so that no maximum is of nothing.
            b_new = gl.maximum(b_max, gl.max(b_s, 1) * scale)  # [64]
            b_p = gl.exp2(b_s * scale - b_new[:, None])  # [64, BN]
            b_alpha = gl.exp2(b_max - b_new)  # [64]
            b_sum = b_sum * gl.convert_layout(b_alpha, SUM_ROWS, assert_trivial=True)[:, None]
            b_sum += partial_sums(b_p, BN, SUMS)
            b_max = b_new
            # Passes at once, and its branch keeps ptxas from waiting for the product before the softmax: see
            # `block_sparse/hopper_forward.py`.
            mbarrier.wait(v_full.index(v_stage), v_phase)
            b_acc = warpgroup_mma_wait(0, deps=[b_acc])
            mbarrier.arrive(v_empty.index(v_stage))
            v_stage, v_phase = advance(v_stage, v_phase, STAGES)
            b_w = gl.convert_layout(b_p.to(DTYPE), P_LAYOUT, assert_trivial=True)
            b_acc = b_acc * gl.convert_layout(b_alpha, O_ROWS, assert_trivial=True)[:, None]  # [64, D]

        mbarrier.wait(v_full.index(v_stage), v_phase)
        b_acc = warpgroup_mma(b_w, s_v.index(v_stage), b_acc, is_async=True)
        b_total = gl.convert_layout(gl.sum(b_sum, 1), S_ROWS)  # [64]
        b_total = gl.where(b_total > 0, b_total, 1.0)
        b_lse = (b_max + gl.log2(b_total)) * LN_2
        o_row = gl.arange(0, WG_ROWS, S_ROWS)
        p_lane = p_lse + (o_b * heads + o_h) * queries
        gl.store(p_lane + _token(p_order, start + o_row, o_row < rows, HAS_ORDER), b_lse, mask=o_row < rows)
        b_acc = warpgroup_mma_wait(0, deps=[b_acc])

        b_out = b_acc * gl.convert_layout(1.0 / b_total, O_ROWS, assert_trivial=True)[:, None]
        # What is left of the tile's rows belongs to the next cluster.
        o_row = gl.arange(0, WG_ROWS, O_ROWS)
        o_column = gl.arange(0, D, gl.SliceLayout(0, O_LAYOUT))
        o_token = (o_b * queries + _token(p_order, start + o_row, o_row < rows, HAS_ORDER)) * heads + o_h
        gl.store(p_out + (o_token * D)[:, None] + o_column[None, :], b_out.to(DTYPE), mask=(o_row < rows)[:, None])
    else:
        for _j in range(0, slots):
            mbarrier.wait(k_full.index(stage), phase)
            mbarrier.arrive(k_empty.index(stage))
            mbarrier.wait(v_full.index(stage), phase)
            mbarrier.arrive(v_empty.index(stage))
            stage, phase = advance(stage, phase, STAGES)


# Whether a number is 1 or divides by 16 helps nowhere here, and would only compile the kernel again.
NUMBERS = [
    "queries", "keys", "heads", "tiles", "query_clusters", "entries", "live_slots", "first_lane",
    "stride_tb", "stride_th", "stride_pb", "stride_ph",
]  # fmt: skip


@gluon.jit(do_not_specialize=NUMBERS)
def cluster_forward(
    p_q, d_k_64, d_k_32, d_k_16, d_k_unit, d_v_64, d_v_32, d_v_16, d_v_unit, p_out, p_lse, p_tiles, p_counts, p_list,
    p_live, p_order, scale, queries, keys, heads, tiles, query_clusters, entries, live_slots, first_lane,
    stride_tb, stride_th, stride_pb, stride_ph, stride_qb, stride_qs, stride_qh,
    D: gl.constexpr, BN: gl.constexpr, STAGES: gl.constexpr, HAS_ORDER: gl.constexpr,
):  # fmt: skip
    """Grid: one program a tile of each lane, tiles fastest; void tiles, which have no row, do nothing."""
    DTYPE: gl.constexpr = d_k_64.dtype
    RING: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    BAR: gl.constexpr = mbarrier.MBarrierLayout()
    PANELS: gl.constexpr = STAGES * (D // 64)
    s_q = gl.allocate_shared_memory(DTYPE, [CONSUMERS, WG_ROWS, D], RING)
    s_k = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], RING)
    s_v = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], RING)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), D // 64)
        mbarrier.init(k_empty.index(i), CONSUMERS)
        mbarrier.init(v_full.index(i), D // 64)
        mbarrier.init(v_empty.index(i), CONSUMERS)
    fence_async_shared()

    bars = (k_full, k_empty, v_full, v_empty)
    strides = (stride_tb, stride_th, stride_pb, stride_ph, stride_qb, stride_qs, stride_qh)
    # The rings as the producer sees them: pieces of one size, each of one copy.
    l_k = (
        reinterpret(s_k, DTYPE, [PANELS * (BN // 64), 64, 64], RING),
        reinterpret(s_k, DTYPE, [PANELS * (BN // 32), 32, 64], RING),
        reinterpret(s_k, DTYPE, [PANELS * (BN // 16), 16, 64], RING),
        reinterpret(s_k, DTYPE, [PANELS * (BN // UNIT), UNIT, 64], RING),
    )
    l_v = (
        reinterpret(s_v, DTYPE, [PANELS * (BN // 64), 64, 64], RING),
        reinterpret(s_v, DTYPE, [PANELS * (BN // 32), 32, 64], RING),
        reinterpret(s_v, DTYPE, [PANELS * (BN // 16), 16, 64], RING),
        reinterpret(s_v, DTYPE, [PANELS * (BN // UNIT), UNIT, 64], RING),
    )
    d_k = (d_k_64, d_k_32, d_k_16, d_k_unit)
    d_v = (d_v_64, d_v_32, d_v_16, d_v_unit)
    eaten = (p_tiles, p_counts, p_live, p_order, tiles, heads, query_clusters, live_slots, first_lane, strides)
    made = (p_tiles, p_counts, p_list, tiles, heads, query_clusters, entries, keys, first_lane, strides)
    if D == 64:
        gl.warp_specialize(
            [
                (_consume, (
                    0, p_q, p_out, p_lse, s_q, s_k, s_v, bars, eaten, queries, scale,
                    D, BN, STAGES, HAS_ORDER,
                )),
                (_consume, (
                    1, p_q, p_out, p_lse, s_q, s_k, s_v, bars, eaten, queries, scale,
                    D, BN, STAGES, HAS_ORDER,
                )),
                (_produce, (0, d_k, l_k, k_full, k_empty, made, D, BN, STAGES)),
                (_produce, (0, d_v, l_v, v_full, v_empty, made, D, BN, STAGES)),
            ],
            [4, 1, 1],
            [232, 40, 40],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consume, (
                    0, p_q, p_out, p_lse, s_q, s_k, s_v, bars, eaten, queries, scale,
                    D, BN, STAGES, HAS_ORDER,
                )),
                (_consume, (
                    1, p_q, p_out, p_lse, s_q, s_k, s_v, bars, eaten, queries, scale,
                    D, BN, STAGES, HAS_ORDER,
                )),
                (_produce, (0, d_k, l_k, k_full, k_empty, made, D, BN, STAGES)),
                (_produce, (1, d_k, l_k, k_full, k_empty, made, D, BN, STAGES)),
                (_produce, (0, d_v, l_v, v_full, v_empty, made, D, BN, STAGES)),
                (_produce, (1, d_v, l_v, v_full, v_empty, made, D, BN, STAGES)),
            ],
            [4, 1, 1, 1, 1],
            [232, 40, 40, 40, 40],
        )  # fmt: skip
