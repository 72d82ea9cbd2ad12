"""Queries that a call attends for, where its plan is for more: those of one of several ranks, each of which knows the
plan of all; or those of tokens that are no keys alone.

Attention of a row asks for nothing of other rows, so the other rows may be left out: whole query blocks where the order
keeps these tokens together, else what they are in every block. Both are exact.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from dittools.kernels.masks.block_mask import BlockMask
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition

if TYPE_CHECKING:
    from dittools.methods.base import Plan

# Blocks of a rank may hold so many times its own rows before they are cut: kernels of even blocks are faster.
MOST_BESIDE = 1.25


class Cut(NamedTuple):
    """The part of a plan that is for some queries.

    Args:
        mask: a `BlockMask` over all queries that keeps nothing of blocks without any of them; or a `ClusterMask` over
            these queries alone.
        order: with clusters, int32 ``[B or 1, H or 1, n]``: position -> which of the queries.
        key_order: with clusters, int32 ``[B or 1, H or 1, S]``: position -> token.
    """

    mask: BlockMask | ClusterMask
    order: torch.Tensor | None = None
    key_order: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class QueryRows:
    """Which queries of a sequence are attended for.

    Args:
        flags: bool ``[S]``, on the CPU.
        device: of the calls.
    """

    flags: torch.Tensor
    device: torch.device

    @cached_property
    def count(self) -> int:
        """How many they are."""
        return int(self.flags.sum())

    def within(self, at: slice) -> int:
        """How many of them are in a run of the sequence. Read from the flags once."""
        return int(self._before[at.stop] - self._before[at.start])

    @cached_property
    def _before(self) -> torch.Tensor:
        return torch.nn.functional.pad(self.flags.cumsum(0), (1, 0))

    @cached_property
    def tokens(self) -> torch.Tensor:
        """Their tokens: int64 ``[n]``, on the device."""
        return self.flags.nonzero().flatten().to(self.device)

    @cached_property
    def _there(self) -> torch.Tensor:
        return self.flags.to(self.device)

    def among(self, tokens: slice | torch.Tensor) -> QueryRows:
        """The same of some tokens of the sequence, in their order. Waits for the device."""
        return QueryRows(self.flags[tokens if isinstance(tokens, slice) else tokens.cpu()], self.device)

    def counts(self, plan: Plan) -> torch.Tensor:
        """Of each query block, how many of its queries are these: int64 ``[B or 1, H or 1, Mq]``."""
        blocks = plan.mask.query
        here = self._there[None, None] if plan.order is None else self._there[plan.order.long()]
        if isinstance(plan.mask, BlockMask):
            padded = torch.nn.functional.pad(here, (0, blocks.count * blocks.size - blocks.length))
            return padded.unflatten(-1, (blocks.count, blocks.size)).sum(-1)
        labels = blocks.labels()
        lanes = [max(a, b) for a, b in zip(here.shape[:2], labels.shape[:2], strict=True)]
        found = torch.zeros(*lanes, blocks.count, dtype=torch.int64, device=self.device)
        return found.scatter_add_(-1, labels.expand(*lanes, -1), here.long().expand(*lanes, -1))

    def density(self, plan: Plan) -> torch.Tensor:
        """Mean share of the pairs of these queries that a plan computes: a scalar tensor."""
        if plan.keys is not None:
            return plan.share
        if "density" not in plan.made:
            plan.made["density"] = self._density(plan)
        return plan.made["density"]

    def _density(self, plan: Plan) -> torch.Tensor:
        mask = plan.mask
        sizes = mask.key.sizes(self.device)[..., None, :]  # [.., 1, Nk]
        pairs = (self.counts(plan) * (mask.keep * sizes).sum(-1)).sum(-1)
        kept = (pairs.double() / (max(self.count, 1) * mask.key.length)).float()  # [B or 1, H or 1]
        rows = plan.rows
        if rows is not None:
            more = self._there[rows.queries].sum() / max(self.count, 1)
            kept = kept.index_add(1, rows.heads, more.expand(len(kept), len(rows.heads)).float())
        return kept.mean()

    def keys(self, plan: Plan) -> torch.Tensor:
        """Key tokens that some query block with one of these queries keeps, in any sample: bool ``[H or 1, S]``."""
        mask = plan.mask
        kept = (mask.keep & (self.counts(plan) > 0)[..., None]).any(-2)  # [B or 1, H or 1, Nk]
        if isinstance(mask, BlockMask):
            at = kept.repeat_interleave(mask.key.size, -1)[..., : mask.key.length]
        else:
            labels = mask.key.labels()
            lanes = [max(a, b) for a, b in zip(kept.shape[:2], labels.shape[:2], strict=True)]
            at = kept.expand(*lanes, -1).gather(-1, labels.expand(*lanes, -1))
        order = plan.order if plan.key_order is None else plan.key_order
        if order is None:
            return at.any(0)
        lanes = [max(a, b) for a, b in zip(at.shape[:2], order.shape[:2], strict=True)]
        at, order = at.expand(*lanes, -1), order.long().expand(*lanes, -1)
        return torch.empty_like(at, memory_format=torch.contiguous_format).scatter_(-1, order, at).any(0)

    def cut(self, plan: Plan) -> Cut:
        """The part of a plan that is for these queries. Waits for the device."""
        mask, counts = plan.mask, self.counts(plan)
        if isinstance(mask, BlockMask):
            sizes = mask.query.sizes(self.device)
            lanes = counts.shape[0] * counts.shape[1]
            if int(((counts > 0) * sizes).sum()) <= MOST_BESIDE * self.count * lanes:
                return Cut(replace(mask, keep=mask.keep & (counts > 0)[..., None]))
            key = ClusterPartition(mask.key.length, mask.key.sizes(self.device).int()[None, None])
        else:
            key = mask.key
        keys = torch.arange(key.length, dtype=torch.int32, device=self.device)[None, None]
        order = keys if plan.order is None else plan.order
        order = order.expand(*counts.shape[:2], -1).long()
        place = torch.zeros(len(self.flags), dtype=torch.int32, device=self.device)
        place[self.tokens] = torch.arange(self.count, dtype=torch.int32, device=self.device)
        mine = place[order[self._there[order]]].view(*counts.shape[:2], self.count)
        key_order = plan.order if plan.key_order is None else plan.key_order
        query = ClusterPartition(self.count, counts.int())
        return Cut(ClusterMask(mask.keep, query, key), mine, keys if key_order is None else key_order)
