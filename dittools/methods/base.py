"""What a method is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, wraps
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from dittools.attention_profile import Profile
from dittools.budget_check import BudgetCheck, HostReading
from dittools.dense_rows import DenseRows
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.masks.cluster_mask import ClusterMask
from dittools.keys import KeySubset
from dittools.options import Options
from dittools.ranks import ALL, Heads
from dittools.scoped_cache import ScopedCache
from dittools.selection.budget import POOLED
from dittools.selection.ordered_blocks import OrderedBlocks
from dittools.selection.packed import pack_bits, unpack_bits
from dittools.tokens import TokenGrid

if TYPE_CHECKING:
    from dittools.query_rows import Cut, QueryRows


@dataclass(frozen=True, eq=False)
class Plan:
    """Which pairs one sparse call computes, and in which token order.

    Args:
        order: int32 ``[B or 1, H or 1, S]``, position -> token; None is raster.
        mask: blocks of positions in that order, or clusters.
        facts: named tensors for the summary, for example which heads went temporal. Only there they are summed.
        notes: what a user should know about this plan, a line each.
        pack: gives what makes this plan again from little memory; `compact` keeps a large plan in that form.
        keys: fewer keys in place of all, without an order; ``mask`` is then over their queries and these keys.
        key_order: with clusters, the order of the keys; None: that of the queries.
        rows: queries of some heads that see every key beside what the mask keeps.
        own: the queries that this rank attends for, where others attend for the others; None: all.
        by_kind: what `dittools.kinds.kept_by_kind` found of it, by grid.
        readings: what it keeps of the picture's pairs on the way to the host, by grid.
    """

    order: torch.Tensor | None
    mask: BlockMask | ClusterMask
    facts: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pack: Callable[[], Callable[[], Plan]] | None = None
    keys: KeySubset | None = None
    key_order: torch.Tensor | None = None
    rows: DenseRows | None = None
    own: QueryRows | None = None
    by_kind: dict[TokenGrid, torch.Tensor] = field(default_factory=dict, init=False, repr=False)
    readings: dict[TokenGrid, HostReading] = field(default_factory=dict, init=False, repr=False)
    made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)  # of it, for the rows of ranks

    def density(self) -> torch.Tensor:
        """Share of all query-key pairs that is computed: fp32 ``[B or 1, H or 1]``."""
        kept = self.mask.density()
        kept = kept if self.rows is None else self.rows.density(kept)
        return kept if self.keys is None else self.keys.density(kept)

    @cached_property
    def share(self) -> torch.Tensor:
        """The mean `density` of all heads, a scalar tensor; one for all calls of a plan that many use."""
        return self.density().mean()

    def owned(self, rows: QueryRows) -> Plan:
        """The same plan for the queries of this rank. The latest is kept, with what was made of it."""
        kept = self.made.get("owned")
        if kept is None or not (kept.own is rows or torch.equal(kept.own.flags, rows.flags)):
            kept = self.made["owned"] = replace(self, own=rows)
        return kept

    def cut(self) -> Cut:
        """What of it is for this rank's queries. Raises ValueError where it is for all."""
        if self.own is None:
            raise ValueError("the plan is for all queries: there is nothing to cut from it")
        if "cut" not in self.made:
            self.made["cut"] = self.own.cut(self)
        return self.made["cut"]

    def noting(self, *notes: str) -> Plan:
        """The same plan with these notes too."""
        new = [note for note in notes if note not in self.notes]
        if not new:
            return self
        plan = replace(self, notes=(*self.notes, *new))
        plan.by_kind.update(self.by_kind)
        plan.readings.update(self.readings)
        if "share" in vars(self):
            vars(plan)["share"] = self.share
        return plan


# Kept plans of all layers may take this much as they are; larger ones are packed.
KEPT_BYTES = 256 << 20


def compact(plan: Plan, shape: Sequence[int], layers: int) -> Callable[[], Plan]:
    """A plan in the form in which it is kept for later steps; calling it gives the plan.

    Args:
        shape: of q, ``[B, S, H, D]``. layers: that keep one each.
    """
    batch, tokens, heads = shape[:3]
    # At most, with an order for each head and lists beside the mask.
    most = batch * heads * (5 * plan.mask.query.count * plan.mask.key.count + 4 * tokens)
    return plan.pack() if plan.pack and most * layers > KEPT_BYTES else lambda: plan


@dataclass(frozen=True)
class StayDense:
    """A method's answer when this one call is better dense; ``reason`` is counted in the summary."""

    reason: str


@dataclass(frozen=True, eq=False)
class AttentionCall:
    """What a method knows of one self-attention call beside q, k and v.

    Args:
        layer, layers: index of this self-attention layer, and how many there are.
        branch: name of the guidance lane.
        step, steps: index of the denoising step, and how many the run has.
        grid: layout of the S tokens.
        sparsity: share of pairs to skip.
        scale: factor on the logits.
        generator: CPU generator seeded from (seed, step, layer).
        block_size: tokens in a query or key block.
        run_cache: what is the same for every call of the run on this grid.
        branch_state: belongs to this (layer, branch) alone: what a method carries from step to step. It is emptied
            when a forward is run again after a non-finite result.
        profile: the run's profile, which fits model and grid; None for a method that uses none.
        sparse_layers: layers of this one's transformer that the schedule lets run sparse, for what layers share;
            empty: all layers.
        heads: which of the layer's heads q, k and v have, where other ranks have the others. What heads share is
            decided for all of them: scores that compete are gathered (`Heads.gather`), random numbers are drawn and
            tables read for all heads and cut (`Heads.of`).
        own: the block mask that the model brings itself, where it does.
        halved: whether other ranks have the other samples of the batch.
        seed: of the run and this layer, the same in every step, for draws that follow on one another.
    """

    layer: int
    layers: int
    branch: str
    step: int
    steps: int
    grid: TokenGrid
    sparsity: float
    scale: float
    generator: torch.Generator
    block_size: int
    run_cache: ScopedCache = field(default_factory=ScopedCache)
    branch_state: dict[Hashable, Any] = field(default_factory=ScopedCache)
    profile: Profile | None = None
    sparse_layers: tuple[int, ...] = ()
    heads: Heads = ALL
    own: BlockMask | None = None
    halved: bool = False
    seed: int = 0

    @property
    def density(self) -> float:
        """Share of pairs to keep."""
        return 1 - self.sparsity

    @property
    def profile_cache(self) -> ScopedCache:
        """What the profile decides alone for this grid and block size; later runs find it too.

        It stays in host memory between runs, so what is put there has to be on the CPU and small.
        """
        if self.profile is None:
            raise ValueError("this call has no profile, and what a profile decides was asked for")
        return self.profile.cache.get_or_make((self.grid, self.block_size), ScopedCache)


class Method(Options):
    """A recipe: order, selector, budget. Subclasses are frozen dataclasses whose fields are their options.

    They hold settings and no state: what belongs to a run lives in `AttentionCall.run_cache` and ``branch_state``.

    `profile_use`: "none" takes no profile; "given" uses one that the user names; "needed" cannot run without one.
    `decides`: options that decide what is kept in place of the sparsity, where they are neither None nor "auto".
    `reads`: which of q, k and v `plan` looks at; what it does not look at may be missing where other ranks have it.
    `takes_own`: whether it plans from the block mask that a model brings itself, which it then does in every step.
    `knows_heads`: whether what heads share is decided for those of all ranks (`AttentionCall.heads`).

    Every plan is held against what was asked of it (`asked`): a miss is told in its notes.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    correction: ClassVar[str] = "none"  # what the recipe brings along where no correction is asked for
    takes_corrections: ClassVar[bool] = True  # not where it takes fewer keys in place of skipping blocks
    profile_use: ClassVar[str] = "none"
    decides: ClassVar[tuple[str, ...]] = ()
    knows_heads: ClassVar[bool] = False
    takes_own: ClassVar[bool] = False
    video_only: ClassVar[bool] = False  # needs more than one frame
    reads: ClassVar[tuple[str, ...]] = ("q", "k", "v")

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        if "plan" in vars(cls):
            cls.plan = _telling(cls.plan)  # type: ignore[method-assign]

    def plan(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan | StayDense:
        """Choose the pairs of one call, or say why it stays dense.

        Args:
            q, k, v: ``[B, S, H, D]`` after RoPE, S = ``call.grid.tokens``.
            call: everything else there is to know.
        """
        raise NotImplementedError

    def asked(self, call: AttentionCall) -> float | None:
        """Share of the picture's pairs to skip in this call; None where an option decides in place of the sparsity."""
        return None if any(getattr(self, name) not in (None, "auto") for name in self.decides) else call.sparsity

    def asks_others(self, q: torch.Tensor, call: AttentionCall) -> bool:
        """Whether `plan` talks to other ranks in this call, or may stay dense for what it sees in its own heads.

        Ranks then wait for each other at its end, and all do what one has to.
        """
        return not self.knows_heads or getattr(self, "scope", None) in POOLED

    def why_not(self, grid: TokenGrid, block_size: int) -> str | None:
        """None when this method can run on ``grid``, else why it cannot."""
        if self.video_only and grid.frames < 2:
            return f"{self.name} needs a video, and this run has {grid.frames} frame"
        if -(-grid.tokens // block_size) < 4:
            return (
                f"{self.name} needs at least 4 blocks of {block_size} tokens ({3 * block_size + 1} tokens), "
                f"and this run has {grid.tokens} ({grid.frames} x {grid.height} x {grid.width}"
                + (f" and {grid.text} text)" if grid.text else ")")
            )
        return None

    def changed_options(self) -> dict[str, Any]:
        """Option values that differ from the method's defaults, by name."""
        default = type(self)()  # not the fields' own defaults: a method may turn 1 into (1, 1, 1)
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if value != getattr(default, name)}


def _telling(plan: Callable[..., Plan | StayDense]) -> Callable[..., Plan | StayDense]:
    """`Method.plan` whose plans note a missed sparsity."""

    @wraps(plan)
    def told(self: Method, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, call: AttentionCall) -> Plan | StayDense:
        made = plan(self, q, k, v, call)
        if isinstance(made, StayDense) or (asked := self.asked(call)) is None:
            return made
        return made.noting(*call.run_cache.get_or_make(BudgetCheck, BudgetCheck).of(made, self.name, asked, call))

    return told


def block_plan(blocks: OrderedBlocks, keep: torch.Tensor, *notes: str) -> Plan:
    """The plan that keeps these pairs of blocks; kept for later steps, it takes one bit a block.

    Args:
        blocks: of queries and keys alike, in their order.
        keep: bool ``[B or 1, H or 1, M, M]``.
        notes: what a user should know.
    """
    return mask_plan(keep, blocks.order, blocks.partition, {}, notes)


def mask_plan(
    keep: torch.Tensor,
    order: torch.Tensor | None,
    partition: Partition,
    facts: dict[str, torch.Tensor],
    notes: tuple[str, ...],
) -> Plan:
    """As `block_plan`, in any order, one for each head too; the order is kept as it is."""

    def pack() -> Callable[[], Plan]:
        packed = pack_bits(keep)
        return lambda: mask_plan(unpack_bits(packed, partition.count), order, partition, facts, notes)

    return Plan(order, BlockMask(keep, partition, partition), facts, notes, pack=pack)
