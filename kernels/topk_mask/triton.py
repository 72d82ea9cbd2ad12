"""Filling a share in Triton: the score at which it is full is found digit by digit, by counting what reaches it.

Scores become whole numbers of the same order. Of blocks at that score the first ones fill what is left. Sizes are
whole numbers, and so is every count: sums by atomics are the same each time.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dittools.kernels.topk_mask.share import HALVINGS

PASSES = 8  # digits of four bits
TILE = 4  # rows of a program
LOWEST = tl.constexpr(torch.finfo(torch.float32).min)


@triton.jit
def _ranked(b_score, b_must, live):
    """Scores as unsigned numbers of the same order, what must be kept above all, what is not there below all."""
    # The bits of floats sort as sign and magnitude; turned over, as unsigned numbers. Zero has one form.
    b_bits = tl.where(b_score == 0.0, 0.0, b_score).to(tl.int32, bitcast=True)
    b_bits = tl.where(b_bits < 0, ~b_bits, b_bits ^ -2147483648)
    b_bits = tl.where(b_must, -1, b_bits)
    return tl.where(live, b_bits, 0).to(tl.uint32, bitcast=True)


@triton.jit
def _best_blocks(
    p_scores, p_force, p_keys, p_best, p_forced, heads, rows, blocks,
    stride_fb, stride_fh, stride_fm, stride_fn, stride_kb, stride_kh, stride_kn,
    BN: tl.constexpr, HAS_FORCE: tl.constexpr,
):  # fmt: skip
    """Grid: (rows). The best block with keys of a row that has none of these forced, else -1; and keys it must keep."""
    i_row = tl.program_id(0).to(tl.int64)
    i_h, i_b = i_row // rows % heads, i_row // rows // heads
    o_n = tl.arange(0, BN)
    live = o_n < blocks
    p_keys += i_b * stride_kb + i_h * stride_kh
    b_key = tl.load(p_keys + o_n * stride_kn, mask=live, other=0).to(tl.int32)  # [BN]
    forced = 0
    best = -1
    if HAS_FORCE:
        p_force += i_b * stride_fb + i_h * stride_fh + i_row % rows * stride_fm
        b_force = tl.load(p_force + o_n * stride_fn, mask=live, other=0) != 0  # [BN]
        forced = tl.sum(tl.where(b_force, b_key, 0), 0)
    if forced == 0:
        b_score = tl.load(p_scores + i_row * blocks + o_n, mask=live, other=float("-inf"))  # [BN]
        # A score of -inf beside no other still stands above an empty block.
        b_score = tl.where(b_key > 0, tl.maximum(b_score, LOWEST), float("-inf"))
        best = tl.argmax(b_score, 0).to(tl.int32)
        forced = tl.load(p_keys + best * stride_kn).to(tl.int32)
    tl.store(p_best + i_row, best)
    tl.store(p_forced + i_row, forced)


@triton.jit
def _row_levels(
    p_forced, p_queries, p_keys, p_density, p_level, heads, rows, blocks,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn, stride_db, stride_dh,
    BM: tl.constexpr, BN: tl.constexpr, HALVINGS: tl.constexpr,
):  # fmt: skip
    """Grid: (lanes). The keys of a row at which max(forced, level), weighted by queries, comes to the budget."""
    i_lane = tl.program_id(0).to(tl.int64)
    i_b, i_h = i_lane // heads, i_lane % heads
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    in_m, in_n = o_m < rows, o_n < blocks
    b_forced = tl.load(p_forced + i_lane * rows + o_m, mask=in_m, other=0).to(tl.float64)  # [BM]
    p_queries += i_b * stride_qb + i_h * stride_qh
    p_keys += i_b * stride_kb + i_h * stride_kh
    b_query = tl.load(p_queries + o_m * stride_qm, mask=in_m, other=0).to(tl.float64)  # [BM]
    b_key = tl.load(p_keys + o_n * stride_kn, mask=in_n, other=0).to(tl.float64)  # [BN]
    high = tl.sum(b_key, 0)
    low = high * 0
    pairs = tl.load(p_density + i_b * stride_db + i_h * stride_dh) * tl.sum(b_query, 0) * high
    for _ in range(0, HALVINGS):
        level = (low + high) / 2
        over = tl.sum(tl.maximum(b_forced, level) * b_query, 0) > pairs
        low = tl.where(over, low, level)
        high = tl.where(over, level, high)
    tl.store(p_level + i_lane, tl.maximum(low, 1e-9))


@triton.jit
def _topk_mask_per_row(
    p_scores, p_force, p_best, p_keys, p_level, p_rounding, p_keep, heads, rows, blocks,
    stride_fb, stride_fh, stride_fm, stride_fn, stride_kb, stride_kh, stride_kn,
    BN: tl.constexpr, HAS_FORCE: tl.constexpr,
):  # fmt: skip
    """Grid: (rows). The threshold is built from its highest bit down: a bit stays if what reaches it fills the row."""
    i_row = tl.program_id(0).to(tl.int64)
    i_lane = i_row // rows
    i_h, i_b, i_m = i_lane % heads, i_lane // heads, i_row % rows
    o_n = tl.arange(0, BN)
    live = o_n < blocks
    b_score = tl.load(p_scores + i_row * blocks + o_n, mask=live, other=0.0)  # [BN]
    b_size = tl.load(p_keys + i_b * stride_kb + i_h * stride_kh + o_n * stride_kn, mask=live, other=0).to(tl.int32)
    b_must = o_n == tl.load(p_best + i_row)  # [BN]
    if HAS_FORCE:
        p_force += i_b * stride_fb + i_h * stride_fh + i_m * stride_fm
        b_must = b_must | (tl.load(p_force + o_n * stride_fn, mask=live, other=0) != 0)
    b_rank = _ranked(b_score, b_must, live)  # [BN]
    level = tl.load(p_level + i_lane)
    # Sizes are whole numbers: what reaches the level reaches the next of them.
    whole = tl.ceil(level).to(tl.int32)
    threshold = tl.zeros([], dtype=tl.uint32)
    for i in range(0, 32):
        raised = threshold | (tl.full([], 1, dtype=tl.uint32) << (31 - i))
        held = tl.sum(tl.where(b_rank >= raised, b_size, 0), 0)
        threshold = tl.where(held >= whole, raised, threshold)
    b_above = b_rank > threshold  # [BN]
    b_tied = (b_rank == threshold) & live  # [BN]
    b_tie = tl.where(b_tied, b_size, 0)  # [BN]
    b_before = tl.sum(tl.where(b_above, b_size, 0), 0) + tl.cumsum(b_tie, 0) - b_tie  # [BN]
    b_fits = b_before.to(tl.float64) + b_size.to(tl.float64) * tl.load(p_rounding + i_m) < level
    b_keep = (b_above & live) | (b_tied & b_fits) | (b_must & live)
    tl.store(p_keep + i_row * blocks + o_n, b_keep.to(tl.uint8), mask=live)


@triton.jit
def _row(
    p_scores, p_force, p_best, p_queries, p_keys, i_row, o_n, heads, rows, blocks,
    stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    HAS_FORCE: tl.constexpr,
):  # fmt: skip
    """Ranks of the blocks of a row, their sizes, and which must be kept, ``[BN]`` each; and the size of the row."""
    i_h, i_b, i_m = i_row // rows % heads, i_row // rows // heads, i_row % rows
    live = o_n < blocks
    b_score = tl.load(p_scores + i_row * blocks + o_n, mask=live, other=0.0)
    p_keys += i_b * stride_kb + i_h * stride_kh
    b_size = tl.load(p_keys + o_n * stride_kn, mask=live, other=0).to(tl.int32)
    b_must = o_n == tl.load(p_best + i_row)
    if HAS_FORCE:
        p_force += i_b * stride_fb + i_h * stride_fh + i_m * stride_fm
        b_must = b_must | (tl.load(p_force + o_n * stride_fn, mask=live, other=0) != 0)
    query = tl.load(p_queries + i_b * stride_qb + i_h * stride_qh + i_m * stride_qm).to(tl.int64)
    return _ranked(b_score, b_must, live), b_size, b_must & live, query


@triton.jit
def _digits(p_counts, p_budget, i_lane, lanes, passes, PASSES: tl.constexpr):
    """The threshold as far as ``passes`` have counted it, the pairs of blocks above it, and the budget."""
    o_digit, o_pass = tl.arange(0, 16), tl.arange(0, PASSES)
    budget = tl.load(p_budget + i_lane)
    p_bc = p_counts + (o_pass[:, None] * lanes + i_lane) * 16 + o_digit[None, :]
    b_count = tl.load(p_bc, mask=o_pass[:, None] < passes, other=0)  # [PASSES, 16], int64
    # Counts fall from digit to digit: the last that fills the budget is as many as do, without the first.
    b_full = (b_count.to(tl.float64) >= budget) & (o_digit[None, :] > 0)
    b_digit = tl.sum(b_full.to(tl.int32), 1)  # [PASSES]
    # What reaches the next digit of a pass is above; the later the pass, the nearer that is, and the more.
    above = tl.max(tl.max(tl.where(o_digit[None, :] == b_digit[:, None] + 1, b_count, 0), 1), 0)
    threshold = tl.sum(b_digit << (28 - 4 * o_pass), 0).to(tl.uint32, bitcast=True)
    return threshold, above, budget


@triton.jit
def _lane_budgets(
    p_queries, p_keys, p_density, p_budget, heads, rows, blocks,
    stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    HEADS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Grid: (lanes of HEADS heads). Pairs to keep."""
    i_lane = tl.program_id(0).to(tl.int64)
    o_m, o_n = tl.arange(0, BM), tl.arange(0, BN)
    total = tl.zeros([], dtype=tl.int64)
    for i in range(0, HEADS):
        i_b, i_h = (i_lane * HEADS + i) // heads, (i_lane * HEADS + i) % heads
        p_bq = p_queries + i_b * stride_qb + i_h * stride_qh + o_m * stride_qm
        p_bk = p_keys + i_b * stride_kb + i_h * stride_kh + o_n * stride_kn
        queries = tl.sum(tl.load(p_bq, mask=o_m < rows, other=0).to(tl.int64), 0)
        total += queries * tl.sum(tl.load(p_bk, mask=o_n < blocks, other=0).to(tl.int64), 0)
    tl.store(p_budget + i_lane, tl.load(p_density + i_lane) * total.to(tl.float64))


@triton.jit(do_not_specialize=["passes"])
def _count(
    p_scores, p_force, p_best, p_queries, p_keys, p_budget, p_counts, heads, rows, blocks, lane_rows, passes,
    stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    BM: tl.constexpr, BN: tl.constexpr, BR: tl.constexpr, PASSES: tl.constexpr, HAS_FORCE: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of rows, lanes). Pairs of the blocks that reach each of 16 thresholds, the next digit.

    A row is BN blocks and, where that is not all, BR more: next to nothing of a program is idle.
    """
    i_lane = tl.program_id(1).to(tl.int64)
    lanes = tl.num_programs(1)
    threshold, _above, _budget = _digits(p_counts, p_budget, i_lane, lanes, passes, PASSES)
    shift = 28 - 4 * passes
    o_digit = tl.arange(0, 16)
    b_pairs = tl.zeros([16], dtype=tl.int64)
    first = tl.program_id(0) * BM
    for i in range(first, tl.minimum(first + BM, lane_rows)):
        b_rank, b_size, _must, query = _row(
            p_scores, p_force, p_best, p_queries, p_keys, i_lane * lane_rows + i, tl.arange(0, BN), heads, rows, blocks,
            stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh,
            stride_kn, HAS_FORCE,
        )  # fmt: skip
        if BR > 0:
            b_rest_rank, b_rest_size, _must, query = _row(
                p_scores, p_force, p_best, p_queries, p_keys, i_lane * lane_rows + i, BN + tl.arange(0, BR), heads,
                rows, blocks, stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb,
                stride_kh, stride_kn, HAS_FORCE,
            )  # fmt: skip
        for digit in range(1, 16):
            raised = threshold | (tl.full([], digit, dtype=tl.uint32) << shift)
            held = tl.sum(tl.where(b_rank >= raised, b_size, 0), 0)
            if BR > 0:
                held += tl.sum(tl.where(b_rest_rank >= raised, b_rest_size, 0), 0)
            b_pairs += tl.where(o_digit == digit, held * query, 0)
    tl.atomic_add(p_counts + (passes * lanes + i_lane) * 16 + o_digit, b_pairs, sem="relaxed")


@triton.jit
def _count_ties(
    p_scores, p_force, p_best, p_queries, p_keys, p_budget, p_counts, p_ties, heads, rows, blocks, lane_rows,
    stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    BM: tl.constexpr, BN: tl.constexpr, PASSES: tl.constexpr, HAS_FORCE: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of rows, lanes). Pairs of the blocks that stand at the threshold, tile by tile."""
    i_lane = tl.program_id(1).to(tl.int64)
    threshold, _above, _budget = _digits(p_counts, p_budget, i_lane, tl.num_programs(1), PASSES, PASSES)
    pairs = tl.zeros([], dtype=tl.int64)
    first = tl.program_id(0) * BM
    for i in range(first, tl.minimum(first + BM, lane_rows)):
        b_rank, b_size, _must, query = _row(
            p_scores, p_force, p_best, p_queries, p_keys, i_lane * lane_rows + i, tl.arange(0, BN), heads, rows, blocks,
            stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh,
            stride_kn, HAS_FORCE,
        )  # fmt: skip
        pairs += tl.sum(tl.where(b_rank == threshold, b_size, 0), 0) * query
    tl.store(p_ties + i_lane * tl.num_programs(0) + tl.program_id(0), pairs)


@triton.jit
def _topk_mask_per_head(
    p_scores, p_force, p_best, p_queries, p_keys, p_budget, p_counts, p_ties, p_keep, heads, rows, blocks, lane_rows,
    stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh, stride_kn,
    BM: tl.constexpr, BN: tl.constexpr, BT: tl.constexpr, PASSES: tl.constexpr, HAS_FORCE: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles of rows, lanes). Keeps what is above the threshold, and of what stands at it what still fits."""
    i_lane = tl.program_id(1).to(tl.int64)
    threshold, before, budget = _digits(p_counts, p_budget, i_lane, tl.num_programs(1), PASSES, PASSES)
    for i in range(0, tl.program_id(0), BT):
        o_tile = i + tl.arange(0, BT)
        b_pairs = tl.load(p_ties + i_lane * tl.num_programs(0) + o_tile, mask=o_tile < tl.program_id(0), other=0)
        before += tl.sum(b_pairs, 0)
    o_n = tl.arange(0, BN)
    first = tl.program_id(0) * BM
    for i in range(first, tl.minimum(first + BM, lane_rows)):
        i_row = i_lane * lane_rows + i
        b_rank, b_size, b_must, query = _row(
            p_scores, p_force, p_best, p_queries, p_keys, i_row, o_n, heads, rows, blocks,
            stride_fb, stride_fh, stride_fm, stride_fn, stride_qb, stride_qh, stride_qm, stride_kb, stride_kh,
            stride_kn, HAS_FORCE,
        )  # fmt: skip
        b_tied = (b_rank == threshold) & (o_n < blocks)
        b_size = tl.where(b_tied, b_size, 0)
        b_spent = before + (tl.cumsum(b_size, 0) - b_size) * query  # [BN], int64
        # The middle of a block lies within the budget: twice its beginning and once its size stay below twice that.
        b_fits = (2 * b_spent + b_size * query).to(tl.float64) < 2 * budget
        b_keep = (b_rank > threshold) | (b_tied & b_fits) | b_must
        tl.store(p_keep + i_row * blocks + o_n, b_keep.to(tl.uint8), mask=o_n < blocks)
        before += tl.sum(b_size, 0) * query


def triton_topk_mask_per_row(scores, queries, keys, density, force, rounding: torch.Tensor) -> torch.Tensor:
    """Launch the kernels. Args and returns as `topk_mask.dispatch.topk_mask_per_row`, sizes with all their lanes."""
    call = _Call(scores, keys, force)
    batches, heads, rows, blocks = scores.shape
    density = _as_tensor(density, (batches, heads), scores.device)
    level = torch.empty(batches * heads, dtype=torch.float64, device=scores.device)
    _row_levels[(batches * heads,)](
        call.forced, queries, keys, density, level, heads, rows, blocks,
        *queries.stride(), *keys.stride(), *density.stride(),
        BM=triton.next_power_of_2(rows), BN=call.wide, HALVINGS=HALVINGS, num_warps=4,
    )  # fmt: skip
    keep = torch.empty(scores.shape, dtype=torch.bool, device=scores.device)
    _topk_mask_per_row[(batches * heads * rows,)](
        call.scores, call.force, call.best, keys, level, rounding, keep.view(torch.uint8), heads, rows, blocks,
        *call.force_strides, *keys.stride(), BN=call.wide, HAS_FORCE=call.has_force, num_warps=call.warps, maxnreg=160,
    )  # fmt: skip
    return keep


def triton_topk_mask_per_head(scores, queries, keys, density, across_heads: bool, force) -> torch.Tensor:
    """Launch the kernels. Args and returns as `topk_mask.dispatch.topk_mask_per_head`, sizes with all their lanes."""
    call = _Call(scores, keys, force)
    batches, heads, rows, blocks = scores.shape
    of = heads if across_heads else 1  # heads of a lane
    lanes, lane_rows = batches * heads // of, rows * of
    density = _as_tensor(density, (batches, heads // of), scores.device).contiguous()
    device = scores.device
    budget = torch.empty(lanes, dtype=torch.float64, device=device)
    _lane_budgets[(lanes,)](
        queries, keys, density, budget, heads, rows, blocks, *queries.stride(), *keys.stride(),
        HEADS=of, BM=triton.next_power_of_2(rows), BN=call.wide, num_warps=4,
    )  # fmt: skip
    tiles = triton.cdiv(lane_rows, TILE)
    counts = torch.zeros(PASSES, lanes, 16, dtype=torch.int64, device=device)
    ties = torch.empty(lanes, tiles, dtype=torch.int64, device=device)
    inputs = (call.scores, call.force, call.best, queries, keys, budget, counts)
    sizes = (heads, rows, blocks, lane_rows)
    strides = (*call.force_strides, *queries.stride(), *keys.stride())
    tile = {"BM": TILE, "BN": call.wide, "PASSES": PASSES, "HAS_FORCE": call.has_force}
    parts = dict(zip(("BN", "BR"), _parts(blocks, call.wide), strict=True))
    for passes in range(PASSES):
        _count[(tiles, lanes)](
            *inputs, *sizes, passes, *strides, num_warps=call.warps, maxnreg=160, **(tile | parts)
        )  # fmt: skip
    _count_ties[(tiles, lanes)](*inputs, ties, *sizes, *strides, num_warps=call.warps, **tile)
    keep = torch.empty(scores.shape, dtype=torch.bool, device=device)
    _topk_mask_per_head[(tiles, lanes)](
        *inputs, ties, keep.view(torch.uint8), *sizes, *strides, BT=1024, num_warps=call.warps, **tile
    )  # fmt: skip
    return keep


def _parts(blocks: int, wide: int) -> tuple[int, int]:
    """Two powers of two that hold the blocks with less to spare than one, or that one and 0."""
    rest = triton.next_power_of_2(max(2, blocks - wide // 2))
    return (wide // 2, rest) if 2 < rest < wide // 2 else (wide, 0)


class _Call:
    """What the kernels read alike, and what each row must keep."""

    def __init__(self, scores: torch.Tensor, keys: torch.Tensor, force: torch.Tensor | None):
        _, heads, rows, blocks = scores.shape
        self.scores = scores.contiguous()
        self.wide = triton.next_power_of_2(max(blocks, 2))
        self.warps = 1 if self.wide <= 1024 else 4
        self.has_force = force is not None
        self.best = torch.empty(scores.shape[:3], dtype=torch.int32, device=scores.device)
        self.forced = torch.empty_like(self.best)  # keys
        self.force = force.expand(scores.shape).view(torch.uint8) if self.has_force else self.best
        self.force_strides = self.force.stride() if self.has_force else (0, 0, 0, 0)
        _best_blocks[(self.best.numel(),)](
            self.scores, self.force, keys, self.best, self.forced, heads, rows, blocks,
            *self.force_strides, *keys.stride(),
            BN=self.wide, HAS_FORCE=self.has_force, num_warps=self.warps,
        )  # fmt: skip


def _as_tensor(density: float | torch.Tensor, shape: tuple[int, int], device: torch.device) -> torch.Tensor:
    """fp64 of this shape, which nothing is written to."""
    if isinstance(density, torch.Tensor):
        return density.to(device, torch.float64).expand(shape)
    return torch.full((1, 1), density, dtype=torch.float64, device=device).expand(shape)
