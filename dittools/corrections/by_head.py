"""Which heads a sample pays for: judged on a few query blocks, at as many pairs.

A sample takes pairs from blocks. Where attention is spread it is worth far more than they are, and where a head looks
at few places it is worth less. Of some rows of some query blocks all weights are computed. The kept blocks with the
sample are then set against these blocks and the best others, for as many pairs, in place of the sample.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from dittools.kernels.block_sparse.sample import Sample, tokens_at
from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.residual.dispatch import rows_at_a_time, rows_of
from dittools.kernels.upload import upload
from dittools.methods.base import Plan
from dittools.selection.sampled import stratified_rows

QUERY_BLOCKS = 8
ROWS = 8  # of each


def errors_by_head(
    tensors: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    plan: Plan,
    sample: Sample,
    scale: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Squared errors of each head with a sample, and with as many pairs in blocks: fp32 ``[H, 2]``. Nothing waits.

    Args:
        tensors: q, k and v, ``[B, S, H, D]``; heads are judged by all batch elements together.
        plan: of even blocks, which leaves out the pairs that the sample takes.
        generator: draws the rows.
    """
    q = tensors[0]
    (batches, _, heads, _), query, key = q.shape, plan.mask.query, plan.mask.key
    blocks = stratified_rows(query.length // query.size, QUERY_BLOCKS, generator)  # whole ones alone
    within = stratified_rows(query.size, ROWS, generator)
    positions = upload((blocks[:, None] * query.size + within).flatten(), q.device)
    blocks = upload(blocks, q.device)
    draw = blocks % len(sample.positions)
    drawn, counts = sample.positions[draw], sample.counts[draw]  # [R, n], [R]
    positions_of_all = torch.arange(key.length, device=q.device)
    judge = _Judge(positions_of_all // key.size, key.count, drawn, counts, sample)
    wrong = torch.zeros(heads, 2, device=q.device)
    most = max(1, rows_at_a_time(key.length, q.device) // (4 * len(positions)))  # heads at a time
    keep = plan.mask.keep.expand(batches, heads, -1, -1)
    for b in range(batches):
        for first in range(0, heads, most):  # none, of a rank that has no head
            part = slice(first, min(first + most, heads))
            order = _of_heads(plan.order, b, part)
            every = positions_of_all[None, None] if order is None else order.long()
            mine = (x[b : b + 1, :, part] for x in tensors)
            at = (tokens_at(order, positions), every, every)
            rows, keys, values = (rows_of(x, tokens).float() for x, tokens in zip(mine, at, strict=True))
            weights = (rows @ keys.transpose(1, 2) * scale).softmax(-1)  # [h, R * ROWS, S]
            wrong[part] += judge(weights, values, keep[b, part][:, blocks])
    return wrong


class _Judge:
    """Squared errors of some rows, with a sample and with blocks in its place."""

    def __init__(self, block: torch.Tensor, count: int, drawn: torch.Tensor, counts: torch.Tensor, sample: Sample):
        self._block, self._count, self._sample = block, count, sample
        there = torch.arange(drawn.shape[1], device=drawn.device) < counts[:, None]
        self._drawn, self._there = drawn, there  # [R, n]

    def __call__(self, weights: torch.Tensor, values: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        """``[h, 2]`` of weights ``[h, R * ROWS, S]``, values ``[h, S, D]`` and what the blocks keep, ``[h, R, Nk]``."""
        heads, blocks = keep.shape[:2]
        each = weights.view(heads, blocks, -1, weights.shape[-1])  # [h, R, rows, S]
        exact = weights @ values
        kept = keep[..., self._block]  # [h, R, S]
        filled = torch.nn.functional.pad(each.mean(2), (0, self._count * self._key_size - each.shape[-1]))
        mass = filled.unflatten(-1, (self._count, -1)).sum(-1)  # [h, R, Nk]
        skipped = ~keep.gather(-1, (self._drawn // self._key_size).expand(heads, -1, -1)) & self._there
        # With the sample: its keys weigh what they stand for.
        many = skipped * self._sample.weight
        with_sample = kept.float().scatter_add_(-1, self._drawn.expand(heads, -1, -1), many)
        # With blocks: the best others for as many pairs.
        more = (skipped.sum(-1, keepdim=True) / self._key_size).round()  # [h, R, 1]
        rank = mass.masked_fill(keep, -1.0).argsort(-1, descending=True).argsort(-1)
        with_blocks = (keep | (rank < more))[..., self._block].float()
        return torch.stack([_error(each * one[:, :, None], values, exact) for one in (with_sample, with_blocks)], -1)

    @property
    def _key_size(self) -> int:
        return round(self._sample.weight * self._sample.per)


def _error(weights: torch.Tensor, values: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """``[h]``, of weights ``[h, R, rows, S]`` that sum to anything."""
    weights = weights.flatten(1, 2)
    out = weights @ values / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (out - exact).square().sum((1, 2))


def _of_heads(order: torch.Tensor | None, batch: int, heads: slice) -> torch.Tensor | None:
    """The order of some heads of a batch element: ``[1, h or 1, S]``."""
    if order is None:
        return None
    order = order[batch : batch + 1] if len(order) > 1 else order
    return order if order.shape[1] == 1 else order[:, heads]


def merged(sampled: Plan, plain: Plan, heads: torch.Tensor) -> Plan:
    """One plan of two over the same blocks: that of the first for ``heads``, bool ``[H]``, else that of the second."""
    keep = torch.where(heads[None, :, None, None], sampled.mask.keep, plain.mask.keep)
    order = sampled.order
    if order is not None and order is not plain.order:
        order = torch.where(heads[None, :, None], order, plain.order)
    notes = tuple(dict.fromkeys((*sampled.notes, *plain.notes)))
    mask = BlockMask(keep, sampled.mask.query, sampled.mask.key)
    return replace(sampled, order=order, mask=mask, pack=None, notes=notes)
