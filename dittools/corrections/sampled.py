"""Sampled: random keys of every skipped block stand for it, other ones in each step.

The softmax over all keys is a sum of large weights, which a method looks for, and of many small ones that vary little:
of those a sample says most. r keys of a skipped block of n enter with the bias log(n / r), so that mass and output of
what was skipped are right on average, and what the sample misses is noise that differs from step to step, where what
blocks alone miss is the same. Steps that follow on one another draw keys far apart (`draw_samples`), so that what they
miss averages out faster than by chance, and query blocks take turns at several draws of a step, so that they do not
all miss the same. Draws are those of all heads and guidance branches of a step. Pairs with sampled keys were computed,
and count: of a budget, ``share`` is spent on them.

Of even blocks the keys are more tiles of the very kernel that attends the kept blocks; of clusters they are merged by
LSE after it.

Sources: HyperAttention (arXiv 2310.05869), sampling beside found blocks; Scatterbrain (arXiv 2110.15343), why the two
make up for each other; MagicPIG (arXiv 2410.16179), that a sample beats the largest keys where attention is flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from dittools.attention import takes_samples
from dittools.corrections.base import Corrected, Correction, SparseCall
from dittools.corrections.by_head import errors_by_head, merged
from dittools.kernels.block_sparse.sample import DRAWS, GOLDEN, Sample, allowed, draw_samples, join_sample
from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.residual.dispatch import Blocks, residual_attention
from dittools.kernels.residual.sample import sampled_keys
from dittools.kernels.upload import upload
from dittools.methods.base import AttentionCall, Plan, StayDense
from dittools.options import option

if TYPE_CHECKING:
    from dittools.corrections.base import Whole

_SALT = 0x5A3B1E
ALL, SOME, NONE = "all", "some", "none"
EVERY = 8  # steps for which heads keep what they chose


@dataclass(frozen=True)
class Sampled(Correction):
    """Skipped blocks and clusters as some of their keys, drawn anew in each step."""

    name: ClassVar[str] = "sampled"
    summary: ClassVar[str] = "random keys of each skipped block stand for it, within the budget"

    share: float = option(0.4, "of the computed pairs, how many are with sampled keys, about", above=0, below=1)
    draws: int = option(DRAWS, "different draws in a step, at which query blocks take turns, at most", min=1)
    by_head: bool = option(True, "heads that are nearer to dense without a sample do without")

    @property
    def differs_by_head(self) -> bool:
        return self.by_head

    def sparsity_of_plans(self, sparsity: float, block_size: int) -> float:
        rate = self.keys_of(block_size, sparsity) / block_size
        return min(1.0, sparsity / (1 - rate))

    def keys_of(self, size: int, sparsity: float) -> int:
        """Keys drawn of each skipped block of so many tokens, for so many skipped pairs in all: a power of two."""
        density = 1 - sparsity
        wanted = self.share * density / (1 - density * (1 - self.share)) * size
        some = [per for per in allowed(size) if per < 0.9 * density * size] or [1]  # blocks have to be left
        return min(some, key=lambda per: abs(math.log(per / max(wanted, 1.0))))

    def plan(self, make: Callable[..., Plan | StayDense], call: AttentionCall, whole: Whole, sparsity: float):
        if not self.by_head:
            return make()
        kept = self._kept(call)
        due = kept.step is None or call.step - kept.step >= EVERY
        if kept.some == NONE and not due:
            return make(sparsity=sparsity)
        plan = make()
        if isinstance(plan, StayDense) or not takes_samples(plan):
            return plan
        if due:
            self._choose(kept, plan, call, whole, sparsity)
        if kept.some == ALL:
            return plan
        plain = make(sparsity=sparsity)
        if kept.some == NONE or isinstance(plain, StayDense):
            return plain
        return merged(plan, plain, call.heads.of(kept.heads, 0))

    def _choose(self, kept: _Heads, plan: Plan, call: AttentionCall, whole: Whole, sparsity: float) -> None:
        """Which heads take a sample from this step on. Waits for the device, once a layer and so many steps."""
        sample = self._draw(plan.mask, call, sparsity)
        wrong = errors_by_head(whole(), plan, sample, call.scale, _generator(call))  # [H, 2]
        density = plan.density().expand(-1, len(wrong)).mean(0)
        found = call.heads.gather(torch.cat((wrong, density[:, None]), 1), 0).cpu()
        # Where heads share a budget, a plan of some heads of each would not keep to it: then all do the same.
        shared = float(found[:, 2].max() - found[:, 2].min()) > 0.05 * float(found[:, 2].mean())
        if shared or plan.rows is not None:
            found = found.sum(0, keepdim=True).expand(len(found), -1)
        heads = ~(found[:, 0] > _worth(call) * found[:, 1])  # one whose values are no numbers says nothing
        kept.step, kept.heads = call.step, heads.to(wrong.device)
        kept.some = ALL if heads.all() else SOME if heads.any() else NONE

    def facts(self, call: AttentionCall) -> dict[str, torch.Tensor]:
        heads = self._kept(call).heads
        heads = None if heads is None else call.heads.of(heads, 0)
        return {} if heads is None else {"sampled": heads, "not sampled": ~heads}

    def sample(self, plan: Plan, call: AttentionCall, sparsity: float) -> Sample | None:
        return self._of_heads(plan.mask, call, sparsity) if takes_samples(plan) else None

    def _of_heads(self, mask: BlockMask, call: AttentionCall, sparsity: float) -> Sample | None:
        """The sample of the heads that take one."""
        kept = self._kept(call)
        if kept.some == NONE:
            return None
        sample = self._draw(mask, call, sparsity)
        if kept.some == ALL:
            return sample
        heads = call.heads.of(kept.heads, 0)
        return replace(sample, taken=(heads * sample.positions.shape[1]).int()[None])

    def _kept(self, call: AttentionCall) -> _Heads:
        return call.run_cache.get_or_make((self, call.layer), _Heads)

    def _draw(self, mask: BlockMask, call: AttentionCall, sparsity: float) -> Sample:
        per = self.keys_of(mask.key.size, sparsity)
        drawn = call.run_cache.get_or_make((self, mask.key, per), _Drawn)
        if drawn.step != call.step:
            drawn.step, drawn.samples = call.step, {}
        if (seed := _seed(call)) not in drawn.samples:
            drawn.seeds[seed] = None
            seeds = tuple(one for one in drawn.seeds if one not in drawn.samples)
            made = draw_samples(mask.key, per, seeds, call.step, mask.kv_blocks()[0].device, draws=self.draws)
            drawn.samples.update(zip(seeds, made, strict=True))
        return drawn.samples[seed]

    def correct(self, done: SparseCall) -> Corrected:
        mask, out = done.plan.mask, done.out
        if isinstance(mask, BlockMask):
            sample = done.sample
            if sample is None:  # a rank's own rows, of blocks that were cut for it
                sample = self._of_heads(mask, done.call, done.sparsity)
                if sample is None:
                    return Corrected(out)
                tensors = done.q, done.k, done.v
                out, _ = join_sample(tensors, out, done.lse, mask, done.plan.order, sample, done.call.scale)
            per, computed = sample.per, _computed_of_blocks(done.plan, sample, self._kept(done.call).step)
        else:
            sample, size = None, done.call.block_size
            rate = self.keys_of(size, done.sparsity) / size
            per = max(1, round(rate * mask.key.length / mask.key.count))
            made = torch.Generator().manual_seed(_seed(done.call))
            draws = (torch.rand(mask.key.count, per, generator=made) + done.call.step * GOLDEN) % 1
            blocks = Blocks.of(done.plan, done.q)
            keys = sampled_keys(done.k, done.v, blocks, upload(draws, done.k.device))
            out = residual_attention(done.q, out, done.lse, blocks, keys, done.call.scale)
            computed = _computed_of_clusters(done.plan, per)
        who = "each query" if sample is None or sample.taken is None else "each query of heads that gain by it"
        notes = (f"sampled: {who} also saw {per} random keys of every block that it skipped, which count",)
        return Corrected(out, notes=notes, computed=computed)


def _seed(call: AttentionCall) -> int:
    """Of the draws of a layer, which turn with the step."""
    return (call.seed ^ _SALT) % (1 << 63)


def _worth(call: AttentionCall) -> float:
    """How much larger the squared error of a call with a sample may be: of as many steps as are left, one adds what
    blocks leave out, which is much the same in each of them, and averages out what a sample misses.
    """
    return float(max(1, call.steps - call.step))


@dataclass
class _Heads:
    """Which of a layer's heads take a sample, since which step."""

    step: int | None = None
    heads: torch.Tensor | None = None  # bool [H], of all ranks
    some: str = ALL


@dataclass
class _Drawn:
    """Samples of a step. What layers draw is drawn for all that were there before at once: few small kernels."""

    step: int | None = None
    seeds: dict[int, None] = field(default_factory=dict)
    samples: dict[int, Sample] = field(default_factory=dict)


def _generator(call: AttentionCall) -> torch.Generator:
    """Of the rows on which heads are judged."""
    return torch.Generator().manual_seed((call.generator.initial_seed() ^ _SALT) % (1 << 63))


def _computed_of_blocks(plan: Plan, sample: Sample, heads: int | None) -> torch.Tensor:
    """Share of the pairs that a mask skips which are with keys of a sample: a scalar tensor, kept with the plan.

    Args:
        heads: the step in which those that take it were chosen.
    """
    place = f"sampled {sample.per} by heads of step {heads}"
    if place in plan.made:
        return plan.made[place]
    mask, per = plan.mask, sample.per
    kept, last = mask.kv_blocks()[0], mask.key.count - 1  # [B or 1, H or 1, Mq]
    has_last = (mask.kept_bits()[..., last // 32] >> (last % 32)) & 1
    # Of the last block, which may be ragged, fewer are drawn: so many on average over steps.
    fewer = per * (1 - (mask.key.length - last * mask.key.size) / mask.key.size)
    seen = per * (mask.key.count - kept) - fewer * (1 - has_last)
    if sample.taken is not None:  # all of them, or none
        seen = seen * (sample.taken > 0)[..., None]
    plan.made[place] = _share(plan, (seen * mask.query.sizes(kept.device)).sum(-1).double())
    return plan.made[place]


def _computed_of_clusters(plan: Plan, per: int) -> torch.Tensor:
    """The same of ``per`` keys of each cluster: of empty ones nothing is drawn, whether they are kept or not."""
    mask, place = plan.mask, f"sampled {per}"
    if place in plan.made:
        return plan.made[place]
    filled = mask.key.run_sizes > 0
    skipped = (~mask.keep & filled[..., None, :]).sum(-1)  # [B or 1, H or 1, Mq]
    plan.made[place] = _share(plan, (skipped * per * mask.query.run_sizes).sum(-1).double())
    return plan.made[place]


def _share(plan: Plan, pairs: torch.Tensor) -> torch.Tensor:
    """Pairs ``[B or 1, H or 1]`` over those that the mask skips: a scalar tensor."""
    skipped = (1 - plan.mask.density().double()) * plan.mask.query.length * plan.mask.key.length
    return (pairs.mean() / skipped.mean().clamp_min(1)).float()
