"""The one path every sparse call takes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from dittools.kernels.block_sparse.dispatch import attend_by, block_sparse_attention
from dittools.kernels.block_sparse.sample import Sample
from dittools.kernels.clusters.dispatch import cluster_sparse_attention
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods.base import Plan


@dataclass(frozen=True)
class How:
    """How a plan is attended.

    Args:
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        implementation: a kernel by name; the fastest that can run by default.
        return_lse: corrections need it; it costs a little, so it is asked for.
        known: the plan was found to fit such a call, and ``implementation`` to run it: nothing is asked again.
        sample: keys that stand for the blocks which each row skips, where the plan `takes_samples`.
    """

    scale: float | None = None
    implementation: str | None = None
    return_lse: bool = False
    known: bool = False
    sample: Sample | None = None


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    scale: float | None = None,
    implementation: str | None = None,
    **more,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over the pairs a plan keeps.

    Args:
        q, k, v: ``[B, S, H, D]`` in token order.
        plan: order and mask, or fewer keys and their mask.
        scale, implementation, more: see `How`.

    Returns:
        out ``[B, S, H, D]`` in token order, and lse fp32 ``[B, H, S]`` or None. Where the plan has rows of its own
        (`Plan.own`), those of others hold anything finite.
    """
    return _attend((q, k, v), plan, How(scale, implementation, **more))


def _attend(taken: tuple[torch.Tensor, ...], plan: Plan, how: How) -> tuple[torch.Tensor, torch.Tensor | None]:
    if how.sample is not None and not takes_samples(plan):
        raise ValueError("a sample stands for skipped even blocks of all keys, which this plan has not: leave it out")
    if plan.own is not None:
        return _attend_own(taken, plan, how)
    if plan.keys is not None:
        return _attend_to_fewer(*taken, plan, how)
    call = {"order": plan.order, "scale": how.scale, "return_lse": how.return_lse}
    if how.known and isinstance(plan.mask, BlockMask):
        result = attend_by(how.implementation, taken, plan.mask, sample=how.sample, **call)
    elif how.known:
        result = cluster_sparse_attention(how.implementation, taken, plan.mask, key_order=plan.key_order, **call)
    else:
        call |= {"key_order": plan.key_order, "implementation": how.implementation, "sample": how.sample}
        result = block_sparse_attention(*taken, plan.mask, **call)
    out, lse = result if how.return_lse else (result, None)
    if plan.rows is not None:
        plan.rows.put(*taken, out, lse, how.scale, how.implementation)
    return out, lse


def takes_samples(plan: Plan) -> bool:
    """Whether `attend` takes keys that stand for what a plan skips: of even blocks of all keys."""
    even = isinstance(plan.mask, BlockMask) and plan.keys is None
    return even and (plan.own is None or plan.cut().order is None)


def _attend_own(taken: tuple[torch.Tensor, ...], plan: Plan, how: How) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attend` of the rows of one rank."""
    own, (q, k, v) = plan.own, taken
    if plan.keys is not None:
        few = own.among(plan.keys.queries)
        few_plan = replace(plan, own=None)
        mask = replace(plan.mask, keep=plan.mask.keep & (few.counts(few_plan) > 0)[..., None])
        return _attend_to_fewer(q, k, v, replace(plan, mask=mask), how)
    cut = plan.cut()
    if cut.order is None:
        return _attend(taken, replace(plan, mask=cut.mask, own=None), how)
    # Even blocks that were cut are clusters, for which another kernel may be the fastest.
    name = None if isinstance(plan.mask, BlockMask) else how.implementation
    call = {"order": cut.order, "key_order": cut.key_order, "implementation": name}
    call |= {"scale": how.scale, "return_lse": how.return_lse}
    result = block_sparse_attention(q.index_select(1, own.tokens), k, v, cut.mask, **call)
    mine, mine_lse = result if how.return_lse else (result, None)
    out = mine.new_zeros(*q.shape[:3], v.shape[-1]).index_copy_(1, own.tokens, mine)
    lse = None
    if mine_lse is not None:
        lse = mine_lse.new_full((*mine_lse.shape[:2], q.shape[1]), -torch.inf).index_copy_(2, own.tokens, mine_lse)
    if plan.rows is not None:
        plan.rows.put(q, k, v, out, lse, how.scale, how.implementation)
    return out, lse


def _attend_to_fewer(q, k, v, plan: Plan, asked: How) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attend` for a plan with keys of its own: the queries they are for, then the others over every key."""
    keys = plan.keys
    how = {"scale": asked.scale, "return_lse": True, "implementation": asked.implementation}
    few_k, few_v = keys.take(k, v)
    parts = {
        keys.queries.start: block_sparse_attention(
            q[:, keys.queries], few_k, few_v, plan.mask, key_bias=keys.bias, **how
        )
    }
    for run in keys.others:
        if plan.own is not None and not plan.own.within(run):  # of which nobody wants a row
            out = q.new_zeros(*q[:, run].shape[:3], v.shape[-1])
            parts[run.start] = out, torch.full((len(q), q.shape[2], out.shape[1]), -torch.inf, device=q.device)
            continue
        size = plan.mask.query.size
        full = BlockMask.full(Partition(run.stop - run.start, size), Partition(keys.length, size), q.device)
        parts[run.start] = block_sparse_attention(q[:, run], k, v, full, **how)
    out, lse = zip(*(parts[start] for start in sorted(parts)), strict=True)
    return torch.cat(out, dim=1), torch.cat(lse, dim=-1) if asked.return_lse else None
