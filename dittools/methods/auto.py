"""Which method `method="auto"` stands for, and why it may stay dense."""

from __future__ import annotations

import torch

from dittools.methods.svg import SVG
from dittools.tokens import TokenGrid

# Provisional, until tables measured by `dittools bench` are shipped: below these a sparse call was not faster
# than dense on the machines tried, because choosing and gathering cost more than the skipped pairs.
FEWEST_TOKENS = {"cpu": 1_500, "cuda": 8_000}
LEAST_SPARSITY = 0.5

SUMMARY = "the best method for this model and grid, or dense with the reason"
CANDIDATE = SVG


def why_dense(grid: TokenGrid, sparsity: float, block_size: int, device: torch.device) -> str | None:
    """None when a sparse method pays on this grid and device, else why the run stays dense."""
    fewest = FEWEST_TOKENS.get(device.type, FEWEST_TOKENS["cuda"])
    if grid.video < fewest:
        return f"{grid.video} video tokens are too few to gain on {device.type} (auto starts at {fewest})"
    if sparsity < LEAST_SPARSITY:
        return f"sparsity {sparsity:g} is too low to gain (auto starts at {LEAST_SPARSITY:g})"
    return CANDIDATE().why_not(grid, block_size)
