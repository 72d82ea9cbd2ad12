"""What can be said of a run before it: blocks, arithmetic, and the most that skipping can gain."""

from __future__ import annotations

from dataclasses import dataclass

from dittools.config import Config, whole_steps
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class Estimate:
    """A run by its arithmetic alone. Shares are of multiplications, not of seconds.

    Args:
        blocks: query blocks, and key blocks, of one head.
        sparse_steps, sparse_layers: how many of each are not dense by schedule.
        density: kept share of query-key pairs, over all attention calls of the run.
        attention_share: of the transformer's arithmetic, how much is self-attention when all is dense.
        gain: the most that the transformer can be faster, if skipped pairs cost nothing at all.
    """

    blocks: int
    sparse_steps: int
    sparse_layers: int
    density: float
    attention_share: float
    gain: float


def estimate(
    grid: TokenGrid, config: Config, *, steps: int, layers: int, width: int, cross_attention: bool, block_size: int
) -> Estimate:
    """Estimate one run.

    Args:
        grid: tokens of one self-attention sequence.
        config: sparsity and schedule.
        steps, layers: of the run and of the transformer.
        width: channels of a token, heads times head dim.
        cross_attention: whether layers have a second attention, to the text.
        block_size: tokens in a block.
    """
    sparse_steps = max(0, steps - whole_steps(config.dense_steps, steps) - whole_steps(config.dense_last_steps, steps))
    sparse_layers = max(0, layers - config.dense_layers)
    skipped = config.sparsity * sparse_steps / steps * sparse_layers / layers
    # A token and layer: logits and weighted sum 4 S C; projections 8 C^2, a feed-forward four times as wide
    # 16 C^2, and the projections of queries and output of a cross-attention 4 C^2.
    other = (28 if cross_attention else 24) * width
    share = 4 * grid.tokens / (4 * grid.tokens + other)
    return Estimate(
        blocks=-(-grid.tokens // block_size),
        sparse_steps=sparse_steps,
        sparse_layers=sparse_layers,
        density=1 - skipped,
        attention_share=share,
        gain=1 / (1 - share * skipped),
    )
