"""Block-sparse attention forward for Hopper, in Gluon: TMA, async wgmma, a producer and one or two consumers.

A tile is one query block of one head, 64 rows for each of CONSUMERS warpgroups: of 128 rows, or of 64, when two
programs share a multiprocessor. The producer warp walks the tile's list of key blocks and copies K and V into rings of
shared memory, which the consumers attend. A ring slot holds BN keys, and lists are walked in boxes of what fits: a
slot is one key block, two of 64, or half a block of 128. They are walked from their end: the slot that may hold fewer
than BN live keys (ragged tail, odd number of boxes, empty list) is then the first, where the pipeline has a step of its
own anyway, and the loop masks nothing. A missing box lies past the end of the keys: TMA fills it with zeros.

With HAS_ORDER, K and V are in order already, and each consumer gathers its rows of Q by token, pointers in place of
TMA, and stores its rows of the output likewise, straight from registers.

The softmax is the streaming one in base 2 (see README). The softmax of a slot runs while the tensor cores
multiply the weights of the slot before with its V. Q stays in registers: the tensor cores then read only K and V from
shared memory, whose ports have more to do than they for a tile of 64 rows.

With PER a sample follows the list: copies of PER keys of each key block, in slots of their own (`sample_tiles`), of
which those of blocks that the row keeps weigh nothing. Their weight is one number for all, so it moves the base of the
exponentials and costs nothing an element.
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

from dittools.kernels.gluon_names import async_load, async_store, reinterpret, store_wait
from dittools.kernels.hopper_parts import LN_2, LOG2_E, WG_ROWS, advance, partial_sums

UNIT = gl.constexpr(8)  # elements that strides are counted in: what one load takes


@gluon.jit
def _place(i_tile, tiles, heads):
    """Batch, head and query block of a tile."""
    # Query blocks run fastest: tiles in flight share one head's K and V in L2.
    i_lane = i_tile // tiles
    return i_lane // heads, i_lane % heads, i_tile % tiles


@gluon.jit
def _list(
    i_tile, tiles, heads, key_blocks, p_counts, p_indices, strides, keys, BN: gl.constexpr, KEY_BLOCK: gl.constexpr
):
    """Length of a tile's list in boxes, and its address."""
    i_b, i_h, i_m = _place(i_tile, tiles, heads)
    o_b, o_h = i_b.to(gl.int64), i_h.to(gl.int64)
    count = gl.load(p_counts + o_b * strides[0] + o_h * strides[1] + i_m)
    p_list = p_indices + o_b * strides[2] + o_h * strides[3] + i_m.to(gl.int64) * key_blocks
    if KEY_BLOCK > BN:
        # The second half of the last key block may hold no key: it is no box.
        has_half = (key_blocks * 2 - 1) * BN >= keys
        i_last = gl.load(p_list + (count - 1), mask=has_half & (count > 0), other=0)
        count = count * 2 - gl.where(has_half & (count > 0) & (i_last == key_blocks - 1), 1, 0)
    return count, p_list


@gluon.jit
def _slot(p_list, i_slot, count, key_blocks, BN: gl.constexpr, KEY_BLOCK: gl.constexpr):
    """The boxes of a slot of a list of ``count`` boxes; in place of those outside the list, one past the keys."""
    if KEY_BLOCK > BN:
        live = (i_slot >= 0) & (i_slot < count)
        i_block = gl.load(p_list + i_slot // 2, mask=live, other=key_blocks)
        i_box = i_block * 2 + (i_slot & 1)
        return i_box, i_box
    PARTS: gl.constexpr = BN // KEY_BLOCK
    i_0 = i_slot * PARTS
    live = (i_0 >= 0) & (i_0 < count)
    i_first = gl.load(p_list + i_0, mask=live, other=key_blocks)
    i_second = i_first
    if PARTS == 2:
        i_second = gl.load(p_list + i_0 + 1, mask=live & (i_0 + 1 < count), other=key_blocks)
    return i_first, i_second


@gluon.jit
def _slots(count, BN: gl.constexpr, KEY_BLOCK: gl.constexpr):
    """Slots of a list of ``count`` boxes: at least one, which may hold no live key."""
    if KEY_BLOCK < BN:
        count = (count + BN // KEY_BLOCK - 1) // (BN // KEY_BLOCK)
    return gl.maximum(count, 1)


@gluon.jit
def _copy_slot(
    desc, s_ring, full, i_b, i_h, i_0, i_1, stage,
    D: gl.constexpr, BN: gl.constexpr, KEY_BLOCK: gl.constexpr,
):  # fmt: skip
    """Issue the copies of one slot of K or V: box ``i_0``, and ``i_1`` when a slot holds two."""
    bar = full.index(stage)
    mbarrier.expect(bar, BN * D * 2)
    if KEY_BLOCK >= BN:
        async_load(desc, [i_b, i_h, i_0 * BN, 0], bar, s_ring.index(stage))
    else:
        # Swizzled tiles lie in shared memory as columns of 64, so a part of the rows is loaded column by column.
        COLUMNS: gl.constexpr = D // 64
        PARTS: gl.constexpr = BN // KEY_BLOCK
        for c in gl.static_range(COLUMNS):
            o_part = (stage * COLUMNS + c) * PARTS
            async_load(desc, [i_b, i_h, i_0 * KEY_BLOCK, c * 64], bar, s_ring.index(o_part))
            async_load(desc, [i_b, i_h, i_1 * KEY_BLOCK, c * 64], bar, s_ring.index(o_part + 1))


@gluon.jit
def _copy_any(
    desc, s_ring, d_sample, s_slots, full, i_b, i_h, i_0, i_1, stage,
    D: gl.constexpr, BN: gl.constexpr, KEY_BLOCK: gl.constexpr, PER: gl.constexpr,
):  # fmt: skip
    """`_copy_slot`, or with a negative ``i_0`` the copy of slot ``-1 - i_0`` of the sample."""
    if PER > 0:
        if i_0 < 0:
            bar = full.index(stage)
            mbarrier.expect(bar, BN * D * 2)
            async_load(d_sample, [i_b, i_h, (-1 - i_0) * BN, 0], bar, s_slots.index(stage))
        else:
            _copy_slot(desc, s_ring, full, i_b, i_h, i_0, i_1, stage, D, BN, KEY_BLOCK)
    else:
        _copy_slot(desc, s_ring, full, i_b, i_h, i_0, i_1, stage, D, BN, KEY_BLOCK)


@gluon.jit
def _slot_or_sample(
    p_list, i_slot, count, key_blocks, end, BN: gl.constexpr, KEY_BLOCK: gl.constexpr, PER: gl.constexpr
):
    """`_slot`; below the first slot those of the sample before slot ``end``, from the last on, as negative numbers."""
    i_0, i_1 = _slot(p_list, i_slot, count, key_blocks, BN, KEY_BLOCK)
    if PER > 0:
        i_0 = gl.where(i_slot < 0, -1 - (end + i_slot), i_0)
    return i_0, i_1


@gluon.jit
def _drawn(p_taken, p_drawn, draws, i_b, i_h, i_m, strides, HAS_TAKEN: gl.constexpr):
    """How many keys of its draw of the sample a query block of a head sees."""
    drawn = gl.load(p_drawn + i_m % draws)
    if HAS_TAKEN:
        taken = gl.load(p_taken + i_b.to(gl.int64) * strides[13] + i_h.to(gl.int64) * strides[14])
        drawn = gl.minimum(drawn, taken)
    return drawn


@gluon.jit
def _announce(s_tile, t_full, i_tile, count, i_0, i_1):
    """Tell the consumers the next tile, the boxes of its list, and its first slot."""
    LANES: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    o = gl.arange(0, 4, LANES)
    s_tile.store(gl.where(o < 2, gl.where(o == 0, i_tile, count), gl.where(o == 2, i_0, i_1)))
    mbarrier.arrive(t_full)


@gluon.jit
def _copy_queries(
    q, s_q, q_full, q_empty, q_phase, i_b, i_h, i_m,
    D: gl.constexpr, CONSUMERS: gl.constexpr, HAS_ORDER: gl.constexpr,
):  # fmt: skip
    """Copy the Q of a tile, once the tile before is done with its own; where consumers gather it, only wait for that.

    A consumer that is done with the Q of a tile has also heard what was announced of it.
    """
    for w in gl.static_range(CONSUMERS):
        mbarrier.wait(q_empty.index(w), q_phase ^ 1)
        if not HAS_ORDER:
            mbarrier.expect(q_full.index(w), WG_ROWS * D * 2)
            o_q = (i_m * CONSUMERS + w) * WG_ROWS
            async_load(q, [i_b, i_h, o_q, 0], q_full.index(w), s_q.index(w))


@gluon.jit
def _produce(
    q, d_k, d_v, s_q, s_k, s_v, s_tile, bars, p_counts, p_indices, p_queue, sample, s_slots, tiles, all_tiles, heads,
    key_blocks, strides, keys, D: gl.constexpr, BN: gl.constexpr, KEY_BLOCK: gl.constexpr, STAGES: gl.constexpr,
    CONSUMERS: gl.constexpr, HAS_ORDER: gl.constexpr, PER: gl.constexpr, HAS_TAKEN: gl.constexpr,
    PERSISTENT: gl.constexpr,
):  # fmt: skip
    """The producer warp: Q of each tile, and K and V in the order in which they are used: K0 K1 V0 K2 V1 ..."""
    t_full, q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    d_sk, d_sv, _, p_taken, _, _, p_drawn, draws, slots_each = sample
    s_wide_k, s_wide_v = s_slots
    k_stage, k_phase = gl.to_tensor(0), gl.to_tensor(0)
    v_stage, v_phase = gl.to_tensor(0), gl.to_tensor(0)
    q_phase = gl.to_tensor(0)
    i_tile = gl.program_id(0)
    count, p_list = _list(
        i_tile, tiles, heads, key_blocks, p_counts, p_indices, strides, keys, BN, KEY_BLOCK
    )  # fmt: skip
    while i_tile < all_tiles:
        i_b, i_h, i_m = _place(i_tile, tiles, heads)
        if not PERSISTENT:
            # Q needs no list: it is on its way while the list is read.
            _copy_queries(q, s_q, q_full, q_empty, q_phase, i_b, i_h, i_m, D, CONSUMERS, HAS_ORDER)
        slots = _slots(count, BN, KEY_BLOCK)
        i_0, i_1 = _slot(p_list, slots - 1, count, key_blocks, BN, KEY_BLOCK)
        mbarrier.wait(k_empty.index(k_stage), k_phase ^ 1)
        _copy_slot(d_k, s_k, k_full, i_b, i_h, i_0, i_1, k_stage, D, BN, KEY_BLOCK)
        k_stage, k_phase = advance(k_stage, k_phase, STAGES)
        if PERSISTENT:
            # The ring has room for K before the tile before is done with its Q.
            _copy_queries(q, s_q, q_full, q_empty, q_phase, i_b, i_h, i_m, D, CONSUMERS, HAS_ORDER)
        _announce(s_tile, t_full.index(0), i_tile, count, i_0, i_1)
        q_phase ^= 1

        all_slots, end = slots, gl.to_tensor(0)
        if PER > 0:
            sampled = (_drawn(p_taken, p_drawn, draws, i_b, i_h, i_m, strides, HAS_TAKEN) + BN - 1) // BN
            all_slots, end = slots + sampled, i_m % draws * slots_each + sampled
        n_0, n_1 = _slot_or_sample(p_list, slots - 2, count, key_blocks, end, BN, KEY_BLOCK, PER)
        for j in range(1, all_slots):
            # The slot after is looked up now, so that its indices are there when its copy is due.
            m_0, m_1 = _slot_or_sample(p_list, slots - 2 - j, count, key_blocks, end, BN, KEY_BLOCK, PER)
            mbarrier.wait(k_empty.index(k_stage), k_phase ^ 1)
            _copy_any(d_k, s_k, d_sk, s_wide_k, k_full, i_b, i_h, n_0, n_1, k_stage, D, BN, KEY_BLOCK, PER)
            k_stage, k_phase = advance(k_stage, k_phase, STAGES)
            mbarrier.wait(v_empty.index(v_stage), v_phase ^ 1)
            _copy_any(d_v, s_v, d_sv, s_wide_v, v_full, i_b, i_h, i_0, i_1, v_stage, D, BN, KEY_BLOCK, PER)
            v_stage, v_phase = advance(v_stage, v_phase, STAGES)
            i_0, i_1, n_0, n_1 = n_0, n_1, m_0, m_1

        # The next tile is drawn while the rings still hold work.
        i_tile = all_tiles
        if PERSISTENT:
            i_tile = gl.num_programs(0) + gl.atomic_add(p_queue, 1)
            count, p_list = _list(
                gl.minimum(i_tile, all_tiles - 1), tiles, heads, key_blocks, p_counts, p_indices, strides, keys, BN,
                KEY_BLOCK,
            )  # fmt: skip
        mbarrier.wait(v_empty.index(v_stage), v_phase ^ 1)
        _copy_any(d_v, s_v, d_sv, s_wide_v, v_full, i_b, i_h, i_0, i_1, v_stage, D, BN, KEY_BLOCK, PER)
        v_stage, v_phase = advance(v_stage, v_phase, STAGES)
    if PERSISTENT:
        for w in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(w), q_phase ^ 1)
        _announce(s_tile, t_full.index(0), i_tile, 0, 0, 0)


@gluon.jit
def _block_bias(p_bias, i_0, i_1, o_n, key_blocks, KEY_BLOCK: gl.constexpr, BN: gl.constexpr):
    """Bias of each key of a slot, base 2: ``[BN]``."""
    if KEY_BLOCK > BN:
        i_0 = i_0 // 2
    b_0 = gl.load(p_bias + i_0, mask=i_0 < key_blocks, other=0.0) * LOG2_E
    if KEY_BLOCK >= BN:
        return gl.where(o_n < BN, b_0, 0.0)
    b_1 = gl.load(p_bias + i_1, mask=i_1 < key_blocks, other=0.0) * LOG2_E
    return gl.where(o_n < KEY_BLOCK, b_0, b_1)


@gluon.jit
def _block_of(o_n, BN: gl.constexpr, PER: gl.constexpr):
    """The block, counted from the first of the slot, of the key in each column of a slot of the sample: ``[BN]``."""
    if (PER > 1) & (BN // PER >= 4):
        return o_n // (4 * PER) * 4 + o_n % 8 // 2
    return o_n // PER


@gluon.jit
def _number_of(o_n, o_block, BN: gl.constexpr, PER: gl.constexpr):
    """Which key of its slot stands in each column, as `sample_tiles.numbers` has it: ``[BN]``."""
    if (PER > 1) & (BN // PER >= 4):
        return o_block * PER + o_n % (4 * PER) // 8 * 2 + o_n % 2
    return o_n


@gluon.jit
def _bits_of(p_row, i_slot, drawn, o_block, BN: gl.constexpr, PER: gl.constexpr):
    """Bits of the blocks of a slot of the sample that a row keeps: those of all in a word, or of the block of each key.

    Nothing is read before the first slot and past the last.
    """
    BLOCKS: gl.constexpr = BN // PER
    there = (i_slot >= 0) & (i_slot * BN < drawn)
    if BLOCKS <= 32:
        i_first = i_slot * BLOCKS
        bits = gl.load(p_row + i_first // 32, mask=there, other=0) >> (i_first % 32)
    else:
        bits = gl.load(p_row + i_slot * (BLOCKS // 32), mask=there, other=0) >> (o_block % 32)
        for i in gl.static_range(1, BLOCKS // 32):
            there = (i_slot >= 0) & (i_slot * BN + i * 32 * PER < drawn)
            word = gl.load(p_row + i_slot * (BLOCKS // 32) + i, mask=there, other=0)
            bits = gl.where(o_block >= i * 32, word >> (o_block % 32), bits)
    return bits


@gluon.jit
def _off(bits, o_block, BN: gl.constexpr, PER: gl.constexpr):
    """What is subtracted from logits so that keys of blocks that the row keeps weigh nothing: ``[BN]``, 0 or inf."""
    if BN // PER <= 32:
        bits = bits >> o_block
    return gl.where((bits & 1) == 0, 0.0, float("inf"))


@gluon.jit
def _hear(s_tile, full, phase):
    """What `_announce` said: tile, boxes of its list, first slot."""
    ALL: gl.constexpr = gl.BlockedLayout([4], [32], [4], [0])
    mbarrier.wait(full, phase)
    said = s_tile.load(ALL)
    o = gl.arange(0, 4, ALL)
    i_tile = gl.sum(gl.where(o == 0, said, 0), 0)
    count = gl.sum(gl.where(o == 1, said, 0), 0)
    i_0 = gl.sum(gl.where(o == 2, said, 0), 0)
    return i_tile, count, i_0, gl.sum(gl.where(o == 3, said, 0), 0)


@gluon.jit
def _token(p_order, o_m, i_b, i_h, queries, strides):
    """Tokens at positions, int64; 0 past the last position."""
    p_lane = p_order + i_b.to(gl.int64) * strides[6] + i_h.to(gl.int64) * strides[7]
    return gl.load(p_lane + o_m, mask=o_m < queries, other=0).to(gl.int64)


@gluon.jit
def _gather_queries(p_q, p_order, s_mine, i_b, i_h, o_first, queries, strides, D: gl.constexpr):
    """Bring 64 rows of Q from their tokens into shared memory, for the tensor cores to read."""
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, UNIT], [32 * UNIT // D, D // UNIT], [4, 1], [1, 0])
    o_m = o_first + gl.arange(0, WG_ROWS, gl.SliceLayout(1, LAYOUT))
    o_d = gl.arange(0, D, gl.SliceLayout(0, LAYOUT))
    o_row = _token(p_order, o_m, i_b, i_h, queries, strides) * strides[9]
    o_row += i_b.to(gl.int64) * strides[8] + i_h.to(gl.int64) * strides[10]
    s_mine.store(gl.load(p_q + (o_row * UNIT)[:, None] + o_d[None, :], mask=(o_m < queries)[:, None], other=0.0))
    fence_async_shared()


@gluon.jit
def _attend_sample(
    b_q, s_k, s_v, bars, b_w, b_acc, b_sum, b_max, bits, stage, phase, v_stage, v_phase, p_row, i_slot, drawn, scale,
    weight, D: gl.constexpr, BN: gl.constexpr, PER: gl.constexpr, STAGES: gl.constexpr, PERSISTENT: gl.constexpr,
    LAST: gl.constexpr,
):  # fmt: skip
    """A turn of the loop of `_consume`, for a slot of the sample whose ``bits`` are here; those of the one before
    it come back, which is the next.

    With LAST it is the sample's last slot.
    """
    _, _, _, k_full, k_empty, v_full, v_empty = bars
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    o_n = gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
    o_block = _block_of(o_n, BN, PER)
    b_off = _off(bits, o_block, BN, PER)  # [BN]
    bits = _bits_of(p_row, i_slot - 1, drawn, o_block, BN, PER)

    mbarrier.wait(k_full.index(stage), phase)
    b_s = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
    b_s = warpgroup_mma(b_q, s_k.index(stage).permute((1, 0)), b_s, use_acc=False, is_async=True)
    mbarrier.wait(v_full.index(v_stage), v_phase)
    b_acc = warpgroup_mma(b_w, s_v.index(v_stage), b_acc, is_async=True)
    b_s = warpgroup_mma_wait(1, deps=[b_s])  # [64, BN]
    mbarrier.arrive(k_empty.index(stage))
    stage, phase = advance(stage, phase, STAGES)

    if LAST:
        o_number = _number_of(o_n, o_block, BN, PER)
        b_s = gl.where((o_number < drawn - i_slot * BN)[None, :], b_s, float("-inf"))
    # Keys of blocks that the row keeps have a say in the maximum, as they had before, and none in the sums.
    b_new = gl.maximum(b_max, gl.max(b_s, 1) * scale + weight)  # [64], never -inf: one key is there
    b_p = gl.exp2(b_s * scale - ((b_new - weight)[:, None] + b_off[None, :]))  # [64, BN]
    b_alpha = gl.exp2(b_max - b_new)  # [64]
    b_sum = b_sum * gl.convert_layout(b_alpha, gl.SliceLayout(1, SUMS), assert_trivial=True)[:, None]
    b_sum += partial_sums(b_p, BN, SUMS)
    if not PERSISTENT:
        mbarrier.wait(v_full.index(v_stage), v_phase)  # as in the loop of `_consume`
    b_acc = warpgroup_mma_wait(0, deps=[b_acc])
    mbarrier.arrive(v_empty.index(v_stage))
    v_stage, v_phase = advance(v_stage, v_phase, STAGES)
    b_w = gl.convert_layout(b_p.to(s_k.dtype), P_LAYOUT, assert_trivial=True)
    b_acc = b_acc * gl.convert_layout(b_alpha, gl.SliceLayout(1, O_LAYOUT), assert_trivial=True)[:, None]  # [64, D]
    return b_w, b_acc, b_sum, b_new, bits, stage, phase, v_stage, v_phase


@gluon.jit
def _consume(
    half: gl.constexpr, q, out, p_lse, p_order, s_q, s_k, s_v, s_o, s_tile, bars, p_counts, p_indices, p_bias, sample,
    tiles, all_tiles, heads, out_heads, key_blocks, strides, queries, keys, scale,
    D: gl.constexpr, BN: gl.constexpr, KEY_BLOCK: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    HAS_ORDER: gl.constexpr, HAS_BIAS: gl.constexpr, PER: gl.constexpr, HAS_TAKEN: gl.constexpr,
    PERSISTENT: gl.constexpr,
):  # fmt: skip
    """One consumer warpgroup: rows ``half * 64 ...`` of each tile."""
    t_full, q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    BOX: gl.constexpr = KEY_BLOCK if KEY_BLOCK < BN else BN
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    Q_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, S_LAYOUT, 2)
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 8, 16])
    S_ROWS: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    O_ROWS: gl.constexpr = gl.SliceLayout(1, O_LAYOUT)
    SUM_ROWS: gl.constexpr = gl.SliceLayout(1, SUMS)
    DTYPE: gl.constexpr = s_q.dtype

    o_n = gl.arange(0, BN, gl.SliceLayout(0, S_LAYOUT))
    o_row = gl.arange(0, WG_ROWS, S_ROWS)
    s_mine = s_q.index(half)
    scale = scale * LOG2_E
    stage, phase = gl.to_tensor(0), gl.to_tensor(0)  # of K; V is one slot behind
    v_stage, v_phase = gl.to_tensor(0), gl.to_tensor(0)
    q_phase = gl.to_tensor(0)
    if HAS_ORDER and not PERSISTENT:
        # The tile is known: its rows are on their way while the producer reads the list.
        i_b, i_h, i_m = _place(gl.program_id(0), tiles, heads)
        _gather_queries(q, p_order, s_mine, i_b, i_h, (i_m * CONSUMERS + half) * WG_ROWS, queries, strides, D)
    i_tile, count, i_0, i_1 = _hear(s_tile, t_full.index(0), q_phase)
    while i_tile < all_tiles:
        i_b, i_h, i_m = _place(i_tile, tiles, heads)
        slots = _slots(count, BN, KEY_BLOCK)
        p_list, p_head_bias = p_indices, p_bias
        if HAS_BIAS:
            _, p_list = _list(
                i_tile, tiles, heads, key_blocks, p_counts, p_indices, strides, keys, BN, KEY_BLOCK
            )  # fmt: skip
            p_head_bias = p_bias + i_b.to(gl.int64) * strides[4] + i_h.to(gl.int64) * strides[5]
        if PER > 0:
            _, _, p_bits, p_taken, weight, words, p_drawn, draws, _ = sample
            mine = _drawn(p_taken, p_drawn, draws, i_b, i_h, i_m, strides, HAS_TAKEN)
            p_row = p_bits + i_b.to(gl.int64) * strides[11] + i_h.to(gl.int64) * strides[12] + i_m.to(gl.int64) * words
            last = (mine + BN - 1) // BN - 1
            bits = _bits_of(p_row, last, mine, _block_of(o_n, BN, PER), BN, PER)

        if not HAS_ORDER:
            mbarrier.wait(q_full.index(half), q_phase)
        elif PERSISTENT:
            _gather_queries(q, p_order, s_mine, i_b, i_h, (i_m * CONSUMERS + half) * WG_ROWS, queries, strides, D)
        q_phase ^= 1
        b_q = s_mine.load(Q_LAYOUT)  # [64, D]
        mbarrier.wait(k_full.index(stage), phase)
        b_s = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
        b_s = warpgroup_mma(b_q, s_k.index(stage).permute((1, 0)), b_s, use_acc=False, is_async=True)
        b_s = warpgroup_mma_wait(0, deps=[b_s])  # [64, BN]
        mbarrier.arrive(k_empty.index(stage))
        stage, phase = advance(stage, phase, STAGES)

        if gl.maximum(i_0, i_1) * BOX + BOX > keys:
            o_key = gl.where(o_n < BOX, i_0 * BOX, (i_1 - 1) * BOX) + o_n
            b_s = gl.where((o_key < keys)[None, :], b_s, float("-inf"))
        factor = scale
        if HAS_BIAS:
            b_s = b_s * scale + _block_bias(p_head_bias, i_0, i_1, o_n, key_blocks, KEY_BLOCK, BN)[None, :]
            factor = 1.0
        b_max = gl.max(b_s, 1) * factor  # [64]
        # An empty list or a bias of -inf leaves no live key, and -inf minus -inf is not a number.
        b_base = gl.where(b_max == float("-inf"), 0.0, b_max)
        b_p = gl.exp2(b_s * factor - b_base[:, None])  # [64, BN]
        b_sum = partial_sums(b_p, BN, SUMS)  # [64, 8]
        b_w = gl.convert_layout(b_p.to(DTYPE), P_LAYOUT, assert_trivial=True)  # [64, BN]
        b_acc = gl.zeros([WG_ROWS, D], gl.float32, O_LAYOUT)

        for j in range(1, slots):
            if HAS_BIAS:
                i_0, i_1 = _slot(p_list, slots - 1 - j, count, key_blocks, BN, KEY_BLOCK)
                b_bias = _block_bias(p_head_bias, i_0, i_1, o_n, key_blocks, KEY_BLOCK, BN)
            mbarrier.wait(k_full.index(stage), phase)
            b_s = gl.zeros([WG_ROWS, BN], gl.float32, S_LAYOUT)
            b_s = warpgroup_mma(b_q, s_k.index(stage).permute((1, 0)), b_s, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(v_stage), v_phase)
            b_acc = warpgroup_mma(b_w, s_v.index(v_stage), b_acc, is_async=True)
            b_s = warpgroup_mma_wait(1, deps=[b_s])  # [64, BN]
            mbarrier.arrive(k_empty.index(stage))
            stage, phase = advance(stage, phase, STAGES)

            if HAS_BIAS:
                b_s = b_s * scale + b_bias[None, :]
            b_new = gl.maximum(b_max, gl.max(b_s, 1) * factor)  # [64]
            b_base = b_new
            if HAS_BIAS:
                b_base = gl.where(b_new == float("-inf"), 0.0, b_new)
            b_p = gl.exp2(b_s * factor - b_base[:, None])  # [64, BN]
            b_alpha = gl.exp2(b_max - b_base)  # [64]
            b_sum = b_sum * gl.convert_layout(b_alpha, SUM_ROWS, assert_trivial=True)[:, None]
            b_sum += partial_sums(b_p, BN, SUMS)
            b_max = b_new
            if not PERSISTENT:
                # Passes at once: V arrived before its product was issued. The branch in it keeps ptxas, which moves
                # waits freely within a basic block, from waiting for the product before the softmax. Persistent
                # programs are faster where it may: the consumers then overlap one another.
                mbarrier.wait(v_full.index(v_stage), v_phase)
            b_acc = warpgroup_mma_wait(0, deps=[b_acc])
            mbarrier.arrive(v_empty.index(v_stage))
            v_stage, v_phase = advance(v_stage, v_phase, STAGES)
            b_w = gl.convert_layout(b_p.to(DTYPE), P_LAYOUT, assert_trivial=True)
            b_acc = b_acc * gl.convert_layout(b_alpha, O_ROWS, assert_trivial=True)[:, None]  # [64, D]

        if PER > 0:  # noqa: SIM102 (the first test is of a constant, the second of a loaded value)
            if mine > 0:
                # The last slot is a case apart: it alone may hold keys past the end.
                b_w, b_acc, b_sum, b_max, bits, stage, phase, v_stage, v_phase = _attend_sample(
                    b_q, s_k, s_v, bars, b_w, b_acc, b_sum, b_max, bits, stage, phase, v_stage, v_phase,
                    p_row, last, mine, scale, weight, D, BN, PER, STAGES, PERSISTENT, True,
                )  # fmt: skip
                for j in range(1, last + 1):
                    b_w, b_acc, b_sum, b_max, bits, stage, phase, v_stage, v_phase = _attend_sample(
                        b_q, s_k, s_v, bars, b_w, b_acc, b_sum, b_max, bits, stage, phase, v_stage, v_phase,
                        p_row, last - j, mine, scale, weight, D, BN, PER, STAGES, PERSISTENT, False,
                    )  # fmt: skip

        mbarrier.wait(v_full.index(v_stage), v_phase)
        b_acc = warpgroup_mma(b_w, s_v.index(v_stage), b_acc, is_async=True)
        if PERSISTENT:
            # All QK products of this tile have retired: its Q may be replaced.
            mbarrier.arrive(q_empty.index(half))
        b_total = gl.convert_layout(gl.sum(b_sum, 1), S_ROWS)  # [64]
        b_total = gl.where(b_total > 0, b_total, 1.0)
        b_lse = (b_max + gl.log2(b_total)) * LN_2
        o_m = (i_m * CONSUMERS + half) * WG_ROWS + o_row
        p_lane = p_lse + (i_b * out_heads + i_h).to(gl.int64) * queries
        if HAS_ORDER:
            o_token = _token(p_order, o_m, i_b, i_h, queries, strides)
            gl.store(p_lane + o_token, b_lse, mask=o_m < queries)
        else:
            gl.store(p_lane + o_m, b_lse, mask=o_m < queries)
        b_acc = warpgroup_mma_wait(0, deps=[b_acc])
        mbarrier.arrive(v_empty.index(v_stage))
        v_stage, v_phase = advance(v_stage, v_phase, STAGES)

        b_out = b_acc * gl.convert_layout(1.0 / b_total, O_ROWS, assert_trivial=True)[:, None]
        if HAS_ORDER:
            o_d = gl.arange(0, D, gl.SliceLayout(0, O_LAYOUT))
            o_out = ((i_b.to(gl.int64) * queries + o_token) * out_heads + i_h) * D
            o_out = gl.convert_layout(o_out, O_ROWS, assert_trivial=True)
            live = gl.convert_layout(o_m < queries, O_ROWS, assert_trivial=True)
            gl.store(out + o_out[:, None] + o_d[None, :], b_out.to(DTYPE), mask=live[:, None])
        else:
            if PERSISTENT:
                store_wait(0)  # the copy out of the tile before
            s_o.index(half).store(b_out.to(DTYPE))
            fence_async_shared()
            o_first = (i_m * CONSUMERS + half) * WG_ROWS
            async_store(out, [i_b, i_h, o_first, 0], s_o.index(half))
        i_tile = all_tiles
        if PERSISTENT:
            i_tile, count, i_0, i_1 = _hear(s_tile, t_full.index(0), q_phase)
    if not HAS_ORDER:
        store_wait(0)


# Whether a number is 1 or divides by 16 helps nowhere here, and would only compile the kernel again.
NUMBERS = [
    "queries", "keys", "heads", "out_heads", "tiles", "all_tiles", "key_blocks",
    "stride_cb", "stride_ch", "stride_ib", "stride_ih", "stride_bb", "stride_bh", "stride_ob", "stride_oh",
    "stride_qb", "stride_qs", "stride_qh", "stride_wb", "stride_wh", "stride_tb", "stride_th", "words", "draws",
    "slots_each",
]  # fmt: skip

# Read number by number; some heads of a tensor begin anywhere.
NUMBER_BY_NUMBER = ["p_lse", "p_counts", "p_indices", "p_bias", "p_order", "p_bits", "p_taken", "p_drawn"]


@gluon.jit(do_not_specialize=NUMBERS, do_not_specialize_on_alignment=NUMBER_BY_NUMBER)
def block_sparse_forward(
    q, d_k, d_v, out, p_lse, p_counts, p_indices, p_bias, p_order, p_queue, d_sk, d_sv, p_bits, p_taken, p_drawn, scale,
    weight, queries, keys, heads, out_heads, tiles, all_tiles, key_blocks, words, draws, slots_each, stride_cb,
    stride_ch, stride_ib, stride_ih, stride_bb, stride_bh, stride_ob, stride_oh, stride_qb, stride_qs, stride_qh,
    stride_wb, stride_wh, stride_tb, stride_th,
    D: gl.constexpr, BN: gl.constexpr, KEY_BLOCK: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    HAS_ORDER: gl.constexpr, HAS_BIAS: gl.constexpr, PER: gl.constexpr, HAS_TAKEN: gl.constexpr,
    PERSISTENT: gl.constexpr,
):  # fmt: skip
    """Grid: one program a tile; if PERSISTENT any number, which draw tiles from ``p_queue``, int32 and zero before.

    ``q`` and ``out`` are descriptors; with HAS_ORDER the addresses of their first head here, of tensors in token order,
    ``out`` and ``p_lse`` with ``out_heads`` heads. Strides of q count units of 8 elements.

    With PER, ``d_sk`` and ``d_sv`` are of the sample's ``draws``, ``slots_each`` slots of each, at which query blocks
    take turns, and ``p_drawn`` of how many keys each has; ``p_bits`` are of the blocks that a row keeps, ``words`` a
    row, and ``weight`` is what each key stands for, log2. With HAS_TAKEN a head sees the first of them. An order takes
    no part in it.
    """
    DTYPE: gl.constexpr = d_k.dtype
    RING: gl.constexpr = gl.NVMMASharedLayout(128, 16, rank=2)
    BAR: gl.constexpr = mbarrier.MBarrierLayout()
    s_q = gl.allocate_shared_memory(DTYPE, [CONSUMERS, WG_ROWS, D], RING)
    s_k = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], RING)
    s_v = gl.allocate_shared_memory(DTYPE, [STAGES, BN, D], RING)
    s_o = s_q
    if PERSISTENT and not HAS_ORDER:
        s_o = gl.allocate_shared_memory(DTYPE, [CONSUMERS, WG_ROWS, D], RING)
    s_tile = gl.allocate_shared_memory(gl.int32, [4], gl.SwizzledSharedLayout(1, 1, 1, [0]))
    t_full = gl.allocate_shared_memory(gl.int64, [1, 1], BAR)
    q_full = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], BAR)
    q_empty = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], BAR)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    mbarrier.init(t_full.index(0), 1)
    for i in gl.static_range(CONSUMERS):
        mbarrier.init(q_full.index(i), 1)
        mbarrier.init(q_empty.index(i), 1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), 1)
        mbarrier.init(k_empty.index(i), CONSUMERS)
        mbarrier.init(v_full.index(i), 1)
        mbarrier.init(v_empty.index(i), CONSUMERS)
    fence_async_shared()

    bars = (t_full, q_full, q_empty, k_full, k_empty, v_full, v_empty)
    strides = (
        stride_cb, stride_ch, stride_ib, stride_ih, stride_bb, stride_bh, stride_ob, stride_oh, stride_qb, stride_qs,
        stride_qh, stride_wb, stride_wh, stride_tb, stride_th,
    )  # fmt: skip
    sample = (d_sk, d_sv, p_bits, p_taken, weight, words, p_drawn, draws, slots_each)
    s_slots = (s_k, s_v)
    # The rings as the producer sees them: pieces of one copy each.
    l_k = s_k
    l_v = s_v
    if KEY_BLOCK < BN:
        l_k = reinterpret(s_k, DTYPE, [STAGES * BN // KEY_BLOCK * (D // 64), KEY_BLOCK, 64], RING)
        l_v = reinterpret(s_v, DTYPE, [STAGES * BN // KEY_BLOCK * (D // 64), KEY_BLOCK, 64], RING)
    # Registers are those of 12 warps at 168 or 8 at 128: workers are rounded up to warpgroups.
    if CONSUMERS == 1:
        gl.warp_specialize(
            [
                (_consume, (
                    0, q, out, p_lse, p_order, s_q, s_k, s_v, s_o, s_tile, bars, p_counts, p_indices, p_bias, sample,
                    tiles, all_tiles, heads, out_heads, key_blocks, strides, queries, keys, scale,
                    D, BN, KEY_BLOCK, STAGES, CONSUMERS, HAS_ORDER, HAS_BIAS, PER, HAS_TAKEN, PERSISTENT,
                )),
                (_produce, (
                    q, d_k, d_v, s_q, l_k, l_v, s_tile, bars, p_counts, p_indices, p_queue, sample, s_slots, tiles,
                    all_tiles, heads, key_blocks, strides, keys, D, BN, KEY_BLOCK, STAGES, CONSUMERS, HAS_ORDER, PER,
                    HAS_TAKEN, PERSISTENT,
                )),
            ],
            [1],
            [24],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consume, (
                    0, q, out, p_lse, p_order, s_q, s_k, s_v, s_o, s_tile, bars, p_counts, p_indices, p_bias, sample,
                    tiles, all_tiles, heads, out_heads, key_blocks, strides, queries, keys, scale,
                    D, BN, KEY_BLOCK, STAGES, CONSUMERS, HAS_ORDER, HAS_BIAS, PER, HAS_TAKEN, PERSISTENT,
                )),
                (_consume, (
                    1, q, out, p_lse, p_order, s_q, s_k, s_v, s_o, s_tile, bars, p_counts, p_indices, p_bias, sample,
                    tiles, all_tiles, heads, out_heads, key_blocks, strides, queries, keys, scale,
                    D, BN, KEY_BLOCK, STAGES, CONSUMERS, HAS_ORDER, HAS_BIAS, PER, HAS_TAKEN, PERSISTENT,
                )),
                (_produce, (
                    q, d_k, d_v, s_q, l_k, l_v, s_tile, bars, p_counts, p_indices, p_queue, sample, s_slots, tiles,
                    all_tiles, heads, key_blocks, strides, keys, D, BN, KEY_BLOCK, STAGES, CONSUMERS, HAS_ORDER, PER,
                    HAS_TAKEN, PERSISTENT,
                )),
            ],
            [4, 1],
            [240, 24],
        )  # fmt: skip
