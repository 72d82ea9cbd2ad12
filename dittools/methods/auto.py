"""Which method `method="auto"` stands for, and why it may stay dense.

Source: our tables at equal sparsity (docs/performance.md). Measured block mass stays nearest to dense of all that cost
no more than a tenth of the attention, once its searches are spread over enough steps. A sample of what is skipped
(correction sampled, docs/measured) is worth more than any choice among them.
"""

from __future__ import annotations

import torch

from dittools.methods.adaspa import AdaSpa
from dittools.methods.base import Method
from dittools.methods.draft import Draft
from dittools.methods.svg import SVG
from dittools.tokens import TokenGrid

# Provisional, until tables measured by `dittools bench` are shipped: below these a sparse call was not faster
# than dense on the machines tried, because choosing and gathering cost more than the skipped pairs.
FEWEST_TOKENS = {"cpu": 1_500, "cuda": 8_000}
LEAST_SPARSITY = 0.5
# On a GPU a run's searches take as long as one and a half dense calls of each layer: in 12 steps with guidance a
# sixteenth of a dense run, in fewer more than the better choice is worth.
FEWEST_STEPS = 12
# On a CPU they look at an eighth of the queries of each block, find masks as good, and pay in any number of steps.
CPU_ROWS = 8

# Of a video of so many tokens, blocks that are cubes leave less to be missed than runs of tokens, once what is skipped
# is sampled (adaspa at 0.9, 32,760 tokens: 43.6 against 40.4 dB; of 2,304 tokens runs are better, 31.8 to 29.9).
CUBES_FROM = 16_000
CORRECTION = "sampled"

SUMMARY = "the best method for this model, grid and steps, or dense with the reason"
CANDIDATES = (AdaSpa, SVG, Draft)


def pick(steps: int, grid: TokenGrid, device: str) -> Method:
    """The method for a run of so many steps over a grid, where it does not stay dense."""
    order = "cubes" if grid.frames > 1 and grid.video >= CUBES_FROM else "raster"
    if device == "cpu":
        return AdaSpa(rows=CPU_ROWS, order=order)
    if steps >= FEWEST_STEPS:
        return AdaSpa(order=order)
    return SVG() if grid.frames > 1 else Draft()


def why_dense(grid: TokenGrid, sparsity: float, block_size: int, device: torch.device, steps: int) -> str | None:
    """None when a sparse method pays on this grid and device, else why the run stays dense."""
    fewest = FEWEST_TOKENS.get(device.type, FEWEST_TOKENS["cuda"])
    if grid.video < fewest:
        return f"{grid.video} video tokens are too few to gain on {device.type} (auto starts at {fewest})"
    if sparsity < LEAST_SPARSITY:
        return f"sparsity {sparsity:g} is too low to gain (auto starts at {LEAST_SPARSITY:g})"
    return pick(steps, grid, device.type).why_not(grid, block_size)
