"""Counting sort in Triton: histograms of tiles, one scan over (label, tile), and a scatter of sorted tiles."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

BLOCK = 1024


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
    o_out = (i_n * C + o_c) * tiles + i_t
    tl.store(p_counts + o_out, b_count, mask=o_c < C)
    tl.store(p_before + o_out, b_before, mask=o_c < C)


@triton.jit
def _scatter_tiles(
    p_labels, p_shift, p_order, tokens, tiles, stride_ln, stride_ls,
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
    b_shift = tl.load(p_shift + (i_n * C + b_label) * tiles + i_t, mask=live, other=0)  # [BS]
    tl.store(p_order + i_n * tokens + b_shift + o_r, b_token, mask=live)


def triton_sort_by_label(labels: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernels. Args and returns as `dittools.kernels.sort_by_label`, validated."""
    lanes, tokens = labels.shape
    tiles = triton.cdiv(tokens, BLOCK)
    counts, before = torch.empty(2, lanes, count, tiles, dtype=torch.int32, device=labels.device)
    order = torch.empty(lanes, tokens, dtype=torch.int32, device=labels.device)
    call = (tokens, tiles, *labels.stride())
    _count_tiles[(tiles, lanes)](
        labels, counts, before, *call, C=count, BC=max(2, triton.next_power_of_2(count)), BS=BLOCK, num_warps=4
    )
    # One scan over labels, and over the tiles of each, says where every tile's share of every label begins.
    ends = counts.view(lanes, -1).cumsum(-1, dtype=torch.int32).view(lanes, count, tiles)
    starts = ends - counts
    # A token at place r of its sorted tile is number r - before[label] of its label there.
    _scatter_tiles[(tiles, lanes)](labels, starts - before, order, *call, C=count, BS=BLOCK, num_warps=4)
    return order, F.pad(ends[..., -1], (1, 0))
