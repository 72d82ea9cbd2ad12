"""Lists in one Triton pass: a row of blocks is read once, chosen from and compacted in registers.

Choosing needs no sort. Scores become whole numbers of the same order, the threshold is found bit by bit with one
count over the row each, and of the blocks at the threshold the first ones fill what is left.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def _lists(
    p_keep, p_scores, p_force, p_limit, p_counts, p_indices, blocks, least,
    BN: tl.constexpr, MODE: tl.constexpr, HAS_FORCE: tl.constexpr,
):  # fmt: skip
    """Grid: (rows). MODE is keep, top-k (limit: int32 k) or mass (limit: fp32 p, and at least ``least`` blocks)."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BN)
    live = o_n < blocks
    if MODE == "keep":
        b_keep = tl.load(p_keep + i_row * blocks + o_n, mask=live, other=0) != 0  # [BN]
    else:
        b_score = tl.load(p_scores + i_row * blocks + o_n, mask=live, other=0.0)  # [BN]
        # The bits of floats sort as sign and magnitude; turned over, as unsigned numbers. Zero has one form.
        b_bits = tl.where(b_score == 0.0, 0.0, b_score).to(tl.int32, bitcast=True)  # [BN]
        b_bits = tl.where(b_bits < 0, ~b_bits, b_bits ^ -2147483648)
        if HAS_FORCE:
            b_force = tl.load(p_force + i_row * blocks + o_n, mask=live, other=0) != 0  # [BN]
            b_bits = tl.where(b_force, -1, b_bits)
        b_key = tl.where(live, b_bits, 0).to(tl.uint32, bitcast=True)  # [BN]
        limit = tl.load(p_limit + i_row)
        if MODE == "mass":
            # A share of 1 means every block, which sums in fp32 do not tell from all but the smallest.
            limit = tl.where(limit >= 1.0, float("inf"), limit * tl.sum(b_score, 0))
        threshold = tl.zeros([], dtype=tl.uint32)
        for i in range(0, 32):
            raised = threshold | (tl.full([], 1, dtype=tl.uint32) << (31 - i))
            b_above = b_key >= raised  # [BN]
            count = tl.sum(b_above.to(tl.int32), 0)
            if MODE == "mass":
                enough = (tl.sum(tl.where(b_above, b_score, 0.0), 0) >= limit) & (count >= least)
            else:
                enough = count >= limit
            threshold = tl.where(enough, raised, threshold)
        b_above = b_key > threshold  # [BN]
        b_tied = (b_key == threshold) & live  # [BN]
        b_before = tl.cumsum(b_tied.to(tl.int32), 0) - 1  # [BN]
        count = tl.sum(b_above.to(tl.int32), 0)
        if MODE == "mass":
            held = tl.sum(tl.where(b_above, b_score, 0.0), 0)
            b_tied = b_tied & ((held + b_before * b_score < limit) | (count + b_before < least))
        else:
            b_tied = b_tied & (count + b_before < limit)
        b_keep = b_above | b_tied  # [BN]
        if HAS_FORCE:
            b_keep = b_keep | b_force
    b_slot = tl.cumsum(b_keep.to(tl.int32), 0) - 1  # [BN]
    count = tl.sum(b_keep.to(tl.int32), 0)
    tl.store(p_counts + i_row, count)
    p_indices += i_row * blocks
    tl.store(p_indices + b_slot, o_n, mask=b_keep)
    tl.store(p_indices + o_n, tl.zeros([BN], dtype=tl.int32), mask=live & (o_n >= count))


def triton_lists(
    mode: str, rows: torch.Tensor, limit: torch.Tensor | float | None = None, force=None, least: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernel: `from_keep`, `from_top_k` or `from_mass`, by ``mode`` "keep", "top-k" or "mass".

    ``rows``: bool masks or scores, ``[..., Mq, Nk]``. ``limit``: k or p. ``least``: a count of blocks.
    """
    shape, blocks = rows.shape[:-1], rows.shape[-1]
    counts = torch.empty(shape, dtype=torch.int32, device=rows.device)
    indices = torch.empty(*shape, blocks, dtype=torch.int32, device=rows.device)
    rows = (rows if mode == "keep" else rows.float()).contiguous()
    dtype = torch.float32 if mode == "mass" else torch.int32
    if isinstance(limit, torch.Tensor):
        limit = limit.to(dtype).expand(shape).contiguous()
    elif limit is not None:
        limit = torch.full(shape, limit, dtype=dtype, device=rows.device)
    has_force = force is not None
    force = force.expand(rows.shape).contiguous().view(torch.uint8) if has_force else counts
    rows = rows.view(torch.uint8) if mode == "keep" else rows
    wide = triton.next_power_of_2(max(blocks, 2))
    _lists[(counts.numel(),)](
        rows, rows, force, counts if limit is None else limit, counts, indices, blocks, least,
        BN=wide, MODE=mode, HAS_FORCE=has_force, num_warps=1 if wide <= 1024 else 4,
    )  # fmt: skip
    return counts, indices


@triton.jit
def _bits(p_counts, p_indices, p_bits, blocks, words, BN: tl.constexpr):
    """Grid: (rows). Every listed block sets its bit; they are apart, so adding them up is enough."""
    i_row = tl.program_id(0).to(tl.int64)
    o_n = tl.arange(0, BN)
    listed = o_n < tl.load(p_counts + i_row)
    b_n = tl.load(p_indices + i_row * blocks + o_n, mask=listed, other=0)  # [BN]
    tl.atomic_add(p_bits + i_row * words + b_n // 32, tl.full([BN], 1, dtype=tl.int32) << (b_n % 32), mask=listed)


def triton_bits(counts: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Launch the kernel: `to_bits`."""
    blocks = indices.shape[-1]
    bits = torch.zeros(*indices.shape[:-1], triton.cdiv(blocks, 32), dtype=torch.int32, device=indices.device)
    wide = triton.next_power_of_2(max(blocks, 2))
    _bits[(counts.numel(),)](
        counts.contiguous(), indices.contiguous(), bits, blocks, bits.shape[-1],
        BN=wide, num_warps=1 if wide <= 1024 else 4,
    )  # fmt: skip
    return bits
