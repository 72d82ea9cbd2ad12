"""Counting sort in Triton: histograms of tiles, a scan over the tiles of each label, and a scatter of sorted tiles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl


@dataclass(frozen=True)
class Variant:
    """Tokens of a tile, and warps of its program."""

    tokens: int
    warps: int = 4


def default_variant(count: int) -> Variant:
    """The variant that runs when none is asked for: of those that an H200 was timed with, the fastest."""
    return Variant(512 if count <= 512 else 1024)


@triton.jit
def _count_tiles(
    p_labels, p_counts, p_before, tokens, tiles, stride_ln, stride_ls,
    C: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, N). How often each label occurs in a tile, and how many smaller labels the tile holds."""
    i_t = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64)
    o_s = i_t * BS + tl.arange(0, BS)
    o_c = tl.arange(0, BC)
    live = o_s < tokens
    p_labels += i_n * stride_ln
    b_label = tl.load(p_labels + o_s.to(tl.int64) * stride_ls, mask=live, other=0)  # [BS]
    b_count = tl.histogram(b_label.to(tl.int32), BC, mask=live)  # [BC]
    b_before = tl.cumsum(b_count, 0) - b_count  # [BC]
    o_out = (i_n * tiles + i_t) * C + o_c
    tl.store(p_counts + o_out, b_count, mask=o_c < C)
    tl.store(p_before + o_out, b_before, mask=o_c < C)


@triton.jit
def _scan_tiles(
    p_counts, p_before, p_totals, tiles, C: tl.constexpr, BC: tl.constexpr, BT: tl.constexpr,
):  # fmt: skip
    """Grid: (stretches of labels, N). Counts become what takes a place in a sorted tile to its place among the tokens
    of its label; and how often each label occurs in all.

    A token at place r of its sorted tile is number r - before[label] of its label there.
    """
    i_n = tl.program_id(1).to(tl.int64)
    o_c = tl.program_id(0) * BC + tl.arange(0, BC)
    b_total = tl.zeros([BC], dtype=tl.int32)
    for i in range(0, tiles, BT):
        o_t = i + tl.arange(0, BT)
        inside = (o_t[:, None] < tiles) & (o_c[None, :] < C)
        o_at = (i_n * tiles + o_t[:, None]) * C + o_c[None, :]
        b_count = tl.load(p_counts + o_at, mask=inside, other=0)  # [BT, BC]
        b_before = tl.load(p_before + o_at, mask=inside, other=0)  # [BT, BC]
        b_start = b_total[None, :] + tl.cumsum(b_count, 0) - b_count
        tl.store(p_counts + o_at, b_start - b_before, mask=inside)
        b_total += tl.sum(b_count, 0)
    tl.store(p_totals + i_n * C + o_c, b_total, mask=o_c < C)


@triton.jit
def _offsets(p_totals, p_offset, C: tl.constexpr, BC: tl.constexpr):
    """Grid: (N). Where the tokens of each label begin, and where those of the last end."""
    i_n = tl.program_id(0).to(tl.int64)
    o_c = tl.arange(0, BC)
    b_total = tl.load(p_totals + i_n * C + o_c, mask=o_c < C, other=0)  # [BC]
    # Past the last label nothing is added: its end comes by itself where there is room for it.
    b_offset = tl.cumsum(b_total, 0) - b_total  # [BC]
    tl.store(p_offset + i_n * (C + 1) + o_c, b_offset, mask=o_c <= C)


@triton.jit
def _scatter_tiles(
    p_labels, p_shift, p_offset, p_order, tokens, tiles, stride_ln, stride_ls,
    C: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Grid: (tiles, N). Sort a tile in registers, then write each token to its label's place in the order."""
    i_t = tl.program_id(0)
    i_n = tl.program_id(1).to(tl.int64)
    o_r = tl.arange(0, BS)
    o_s = i_t * BS + o_r
    p_labels += i_n * stride_ln
    b_label = tl.load(p_labels + o_s.to(tl.int64) * stride_ls, mask=o_s < tokens, other=C)  # [BS]
    # The place in the tile as low digit makes an unstable sort stable; tokens past the end come last.
    b_key = tl.sort(b_label.to(tl.int32) * BS + o_r)  # [BS]
    b_label = b_key // BS
    b_token = i_t * BS + b_key % BS  # [BS]
    live = b_label < C
    b_shift = tl.load(p_shift + (i_n * tiles + i_t) * C + b_label, mask=live, other=0)  # [BS]
    b_shift += tl.load(p_offset + i_n * (C + 1) + b_label, mask=live, other=0)
    tl.store(p_order + i_n * tokens + b_shift + o_r, b_token, mask=live)


def triton_sort_by_label(
    labels: torch.Tensor, count: int, variant: Variant | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernels. Args and returns as `dittools.kernels.sort_by_label`, validated; ``variant``: form of the
    kernels, the defaults when None.
    """
    lanes, tokens = labels.shape
    v = variant or default_variant(count)
    tiles = triton.cdiv(tokens, v.tokens)
    counts, before = torch.empty(2, lanes, tiles, count, dtype=torch.int32, device=labels.device)
    order = torch.empty(lanes, tokens, dtype=torch.int32, device=labels.device)
    totals = torch.empty(lanes, count, dtype=torch.int32, device=labels.device)
    offsets = torch.empty(lanes, count + 1, dtype=torch.int32, device=labels.device)
    call = (tokens, tiles, *labels.stride())
    wide = max(2, triton.next_power_of_2(count))
    _count_tiles[(tiles, lanes)](labels, counts, before, *call, C=count, BC=wide, BS=v.tokens, num_warps=v.warps)
    _scan_tiles[(triton.cdiv(count, 64), lanes)](counts, before, totals, tiles, C=count, BC=64, BT=16, num_warps=4)
    _offsets[(lanes,)](totals, offsets, C=count, BC=triton.next_power_of_2(count + 1), num_warps=4)
    _scatter_tiles[(tiles, lanes)](labels, counts, offsets, order, *call, C=count, BS=v.tokens, num_warps=v.warps)
    return order, offsets
