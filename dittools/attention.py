"""The one path every sparse call takes."""

from __future__ import annotations

from dataclasses import replace

import torch

from dittools.kernels.block_sparse.dispatch import attend_by, block_sparse_attention
from dittools.kernels.clusters.dispatch import cluster_sparse_attention
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods.base import Plan


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    plan: Plan,
    scale: float | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
    known: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attention over the pairs a plan keeps.

    Args:
        q, k, v: ``[B, S, H, D]`` in token order.
        plan: order and mask, or fewer keys and their mask.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        implementation: a kernel by name; the fastest that can run by default.
        return_lse: corrections need it; it costs a little, so it is asked for.
        known: the plan was found to fit such a call, and ``implementation`` to run it: nothing is asked again.

    Returns:
        out ``[B, S, H, D]`` in token order, and lse fp32 ``[B, H, S]`` or None. Where the plan has rows of its own
        (`Plan.own`), those of others hold anything finite.
    """
    if plan.own is not None:
        return _attend_own(q, k, v, plan, scale, implementation, return_lse, known)
    if plan.keys is not None:
        return _attend_to_fewer(q, k, v, plan, scale, implementation, return_lse)
    call = {"order": plan.order, "scale": scale, "return_lse": return_lse}
    if known and isinstance(plan.mask, BlockMask):
        result = attend_by(implementation, (q, k, v), plan.mask, **call)
    elif known:
        result = cluster_sparse_attention(implementation, (q, k, v), plan.mask, key_order=plan.key_order, **call)
    else:
        call |= {"key_order": plan.key_order, "implementation": implementation}
        result = block_sparse_attention(q, k, v, plan.mask, **call)
    out, lse = result if return_lse else (result, None)
    if plan.rows is not None:
        plan.rows.put(q, k, v, out, lse, scale, implementation)
    return out, lse


def _attend_own(
    q, k, v, plan: Plan, scale, implementation, return_lse, known
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attend` of the rows of one rank."""
    own, how = plan.own, {"scale": scale, "return_lse": return_lse}
    if plan.keys is not None:
        few = own.among(plan.keys.queries)
        few_plan = replace(plan, own=None)
        mask = replace(plan.mask, keep=plan.mask.keep & (few.counts(few_plan) > 0)[..., None])
        return _attend_to_fewer(q, k, v, replace(plan, mask=mask), scale, implementation, return_lse)
    cut = plan.cut()
    if cut.order is None:
        part = replace(plan, mask=cut.mask, own=None)
        return attend(q, k, v, part, implementation=implementation, known=known, **how)
    # Even blocks that were cut are clusters, for which another kernel may be the fastest.
    name = None if isinstance(plan.mask, BlockMask) else implementation
    call = how | {"order": cut.order, "key_order": cut.key_order, "implementation": name}
    result = block_sparse_attention(q.index_select(1, own.tokens), k, v, cut.mask, **call)
    mine, mine_lse = result if return_lse else (result, None)
    out = mine.new_zeros(*q.shape[:3], v.shape[-1]).index_copy_(1, own.tokens, mine)
    lse = None
    if mine_lse is not None:
        lse = mine_lse.new_full((*mine_lse.shape[:2], q.shape[1]), -torch.inf).index_copy_(2, own.tokens, mine_lse)
    if plan.rows is not None:
        plan.rows.put(q, k, v, out, lse, scale, implementation)
    return out, lse


def _attend_to_fewer(
    q, k, v, plan: Plan, scale, implementation, return_lse
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`attend` for a plan with keys of its own: the queries they are for, then the others over every key."""
    keys = plan.keys
    how = {"scale": scale, "return_lse": True, "implementation": implementation}
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
    return torch.cat(out, dim=1), torch.cat(lse, dim=-1) if return_lse else None
