"""The five patterns of heads that Sparse-vDiT names, as masks, and what each costs on a card.

Source: arXiv 2506.03065, section 3.2.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from dittools.attention_profile import Profile
from dittools.dense_rows import DenseRows
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.upload import upload
from dittools.orders.raster import raster
from dittools.orders.token_major import token_major
from dittools.scoped_cache import process_cached
from dittools.selection.geometric import Band, forced, picture_share
from dittools.selection.modes import choose_modes
from dittools.selection.packed import pack_bits
from dittools.selection.profiled import pool_columns
from dittools.selection.stripes import stripes
from dittools.tokens import TokenGrid

if TYPE_CHECKING:
    from dittools.methods.base import AttentionCall

MODES = ("full", "skip", "diagonal", "multi_diagonal", "stripe")
WIDTHS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8)


class HeadPattern(NamedTuple):
    """A mode and the share of pairs it keeps; 1 for "full", 0 for "skip"."""

    mode: str
    width: float


HEAD_PATTERNS = (
    HeadPattern("full", 1.0),
    HeadPattern("skip", 0.0),
    *(HeadPattern(mode, w) for mode in MODES[2:] for w in WIDTHS),
)
"""What is measured of every head."""


def pattern_order(grid: TokenGrid, pattern: HeadPattern) -> torch.Tensor:
    """Position -> token: int32 ``[S]``. The multi-diagonal is a band once the frames of a patch lie side by side."""
    return token_major(grid) if pattern.mode == "multi_diagonal" else raster(grid)


@process_cached(2)
def _band(grid: TokenGrid, mode: str, block_size: int) -> Band:
    """Bands of a mode in every width: the sort of all block pairs that they share is what they cost."""
    order, index = pattern_order(grid, HeadPattern(mode, 1.0)), torch.arange(grid.video)
    near = index % grid.frame if mode == "multi_diagonal" else index
    return Band(grid, order, near, block_size, forced(grid, order, block_size))


def pattern_mask(grid: TokenGrid, partition: Partition, pattern: HeadPattern, columns: torch.Tensor) -> torch.Tensor:
    """Kept blocks in the pattern's order: bool ``[M, M]`` on the CPU.

    Text attends to everything and is attended to by all, except that a skipped head keeps nothing but blocks of text
    alone: its output is zero for all of the video, and what text shares a block with it is computed beside the mask
    (`text_among_video`). ``columns``: what each key block is worth to this head, ``[M]``.
    """
    if pattern.mode == "full":
        return torch.ones(partition.count, partition.count, dtype=torch.bool)
    if pattern.mode == "skip":
        keep = torch.ones(partition.count, partition.count, dtype=torch.bool)
        keep[_holds_video(grid, partition)] = False
        return keep
    if pattern.mode == "stripe":
        return stripes(grid, partition, columns, pattern.width)
    return torch.from_numpy(_band(grid, pattern.mode, partition.size).keep(pattern.width))


def text_among_video(grid: TokenGrid, partition: Partition) -> torch.Tensor:
    """Tokens that stay dense in blocks of the raster order that hold others too: int64 ``[r]`` on the CPU."""
    shared = torch.zeros(partition.count, dtype=torch.bool)
    shared[_holds_video(grid, partition)] = True
    token = torch.arange(grid.tokens)
    return token[grid.stays_dense() & shared[token // partition.size]]


def _holds_video(grid: TokenGrid, partition: Partition) -> torch.Tensor:
    """Blocks of the raster order with tokens that do not stay dense: int64 ``[n]``."""
    return (torch.arange(grid.tokens)[~grid.stays_dense()] // partition.size).unique()


def from_section(profile: Profile, method: str) -> tuple[list[HeadPattern], int]:
    """The patterns that a profile measured, and its block size. Raises ValueError when they are none."""
    section = profile.methods[method]
    try:
        patterns = [HeadPattern(str(mode), float(width)) for mode, width in section["habits"]]
        good = all(h.mode in MODES and 0 <= h.width <= 1 for h in patterns)
        good = good and section["block_size"] in (16, 32, 64, 128)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good or not {"full", "skip"} <= {h.mode for h in patterns}:
        raise ValueError(f"{profile.name} is damaged: method {method} needs habits and a block size; make it again")
    return patterns, section["block_size"]


def head_costs(profile: Profile, patterns: list[HeadPattern], density: torch.Tensor) -> torch.Tensor:
    """Seconds of a head in each pattern, in dense heads, from the profile's measured line: ``[C]``.

    A skipped head costs nothing; a full one runs dense only if all do, so it pays the sparse kernel's price.
    """
    cost = profile.methods["sparse_vdit"].get("cost") or {}
    line = {name: cost.get(name, [0.0, 1.0]) for name in ("raster", "ordered")}
    if not all(isinstance(v, list) and len(v) == 2 and all(type(x) in (int, float) for x in v) for v in line.values()):
        raise ValueError(f"{profile.name} is damaged: its costs must be [fixed, slope]; make it again")
    values = []
    for pattern, share in zip(patterns, density.tolist(), strict=True):
        fixed, slope = line["ordered" if pattern.mode == "multi_diagonal" else "raster"]
        values.append(0.0 if pattern.mode == "skip" else fixed + slope * share)
    return torch.tensor(values, dtype=torch.float64)


def choose_patterns(
    call: AttentionCall, partition: Partition, cost_weight: float
) -> tuple[list[HeadPattern], torch.Tensor]:
    """The pattern of every head of a layer, and their masks in bits ``[H, M, M / 8]``, from the call's profile.

    Together the heads keep the call's density, at the least error plus ``cost_weight`` times the measured cost.
    """
    profile = call.profile
    patterns, size = from_section(profile, "sparse_vdit")
    lanes = profile.model.layers, profile.model.heads
    error = profile.array("sparse_vdit.error", (*lanes, len(patterns)), torch.float32)[call.layer].double()
    power = profile.array("sparse_vdit.power", lanes, torch.float32)[call.layer].double()
    blocks = Partition(profile.grid.tokens, size).count
    stored = profile.array("sparse_vdit.columns", (*lanes, blocks), torch.float32)[call.layer]
    columns = pool_columns(stored, size, call.block_size, profile.name)
    # Of text behind it, which may be longer or shorter in this call, no column is asked.
    columns = torch.nn.functional.pad(columns, (0, partition.count - columns.shape[-1]))

    def mask(head: int, pattern: HeadPattern) -> torch.Tensor:
        if pattern.mode == "stripe":  # a head's own; the others are the same in every layer
            return pattern_mask(call.grid, partition, pattern, columns[head])
        return call.run_cache.get_or_make(pattern, lambda: pattern_mask(call.grid, partition, pattern, columns[head]))

    density = [picture_share(mask(0, pattern).numpy(), call.grid, call.block_size) for pattern in patterns]
    density = torch.tensor(density, dtype=torch.float64)
    cost = head_costs(profile, patterns, density)
    loss = error / power.mean().clamp_min(torch.finfo(torch.float32).tiny) + cost_weight * cost
    chosen = [patterns[c] for c in choose_modes(loss.numpy(), density.numpy(), call.density)]
    return chosen, pack_bits(torch.stack([mask(head, pattern) for head, pattern in enumerate(chosen)]))


def skipped_text_rows(
    grid: TokenGrid, partition: Partition, chosen: list[HeadPattern], device: torch.device
) -> DenseRows | None:
    """Text of skipped heads that shares a block with video."""
    skipped = torch.tensor([head for head, pattern in enumerate(chosen) if pattern.mode == "skip"], dtype=torch.long)
    among = text_among_video(grid, partition)
    if not len(skipped) or not len(among):
        return None
    return DenseRows(upload(among, device), upload(skipped, device), grid.tokens, partition.size)


def pattern_orders(grid: TokenGrid, device: torch.device) -> torch.Tensor:
    """Raster and token-major: int32 ``[2, S]``."""
    return upload(torch.stack((raster(grid), token_major(grid))), device)
