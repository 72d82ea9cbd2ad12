"""Sampled: random keys of every skipped block stand for it, other ones in each step.

The softmax over all keys is a sum of large weights, which a method looks for, and of many small ones that vary little:
of those a sample says most. r keys of a skipped block of n enter with the bias log(n / r), so that mass and output of
what was skipped are right on average, and what the sample misses is noise that is fresh in each step and in each key
block, where what blocks alone miss is the same from step to step. The draw is the same for all heads and guidance
branches of a step. Pairs with sampled keys were computed, and count: of a budget, ``share`` is spent on them.

Sources: HyperAttention (arXiv 2310.05869), sampling beside found blocks; Scatterbrain (arXiv 2110.15343), why the two
make up for each other; MagicPIG (arXiv 2410.16179), that a sample beats the largest keys where attention is flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from dittools.corrections.base import Corrected, Correction, SparseCall
from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.residual.dispatch import Blocks, residual_attention
from dittools.kernels.residual.sample import sampled_keys
from dittools.kernels.upload import upload
from dittools.methods.base import Plan
from dittools.options import option

_SALT = 0x5A3B1E


@dataclass(frozen=True)
class Sampled(Correction):
    """Skipped blocks and clusters as some of their keys, drawn anew in each step, merged by LSE."""

    name: ClassVar[str] = "sampled"
    summary: ClassVar[str] = "random keys of each skipped block stand for it, within the budget"

    share: float = option(0.5, "of the computed pairs, how many are with sampled keys", above=0, below=1)

    def sparsity_of_plans(self, sparsity: float, block_size: int) -> float:
        rate = self.keys_of(block_size, sparsity) / block_size
        return min(1.0, sparsity / (1 - rate))

    def keys_of(self, size: float, sparsity: float) -> int:
        """Keys drawn of each skipped block of so many tokens, for so many skipped pairs in all."""
        density = 1 - sparsity
        rate = self.share * density / (1 - density * (1 - self.share))
        return max(1, round(rate * size))

    def correct(self, done: SparseCall) -> Corrected:
        blocks, mask = Blocks.of(done.plan, done.q), done.plan.mask
        size = mask.key.size if isinstance(mask, BlockMask) else mask.key.length / mask.key.count
        per = self.keys_of(size, done.sparsity)
        seed = (done.call.generator.initial_seed() ^ _SALT) % (1 << 63)
        draws = torch.rand(mask.key.count, per, generator=torch.Generator().manual_seed(seed))
        keys = sampled_keys(done.k, done.v, blocks, upload(draws, done.k.device))
        out = residual_attention(done.q, done.out, done.lse, blocks, keys, done.call.scale)
        notes = (f"sampled: each query also saw {per} random keys of every block that it skipped, which count",)
        return Corrected(out, notes=notes, computed=_computed(done.plan, per))


def _computed(plan: Plan, per: int) -> torch.Tensor:
    """Share of the pairs that a mask skips which are with ``per`` sampled keys of each block: a scalar tensor."""
    place = f"sampled {per}"
    if place not in plan.made:
        mask = plan.mask
        kept, count = mask.kv_blocks()[0], mask.key.count  # [B or 1, H or 1, Mq]
        if not isinstance(mask, BlockMask):  # of empty clusters nothing is sampled, whether they are kept or not
            filled = mask.key.run_sizes > 0
            kept, count = (mask.keep & filled[..., None, :]).sum(-1), filled.sum(-1, keepdim=True)
        sizes = mask.query.sizes(kept.device)
        pairs = ((count - kept) * sizes).sum(-1).double() * per
        skipped = (1 - mask.density().double()) * mask.query.length * mask.key.length
        plan.made[place] = (pairs.mean() / skipped.mean().clamp_min(1)).float()
    return plan.made[place]
