"""What one pipeline run leaves behind: plans to use again, and everything that was counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import torch

from dittools.attention_profile import Profile
from dittools.corrections.base import Correction
from dittools.kinds import kinds_of
from dittools.methods.base import Method, Plan
from dittools.ranks import ALONE, Heads, Ranks
from dittools.scoped_cache import ScopedCache
from dittools.stopwatch import Stopwatch
from dittools.tally import Tally
from dittools.tokens import TokenGrid

if TYPE_CHECKING:
    from dittools.branches import Branches
    from dittools.caches.step_cache import StepCache
    from dittools.call_info import AttentionInputs
    from dittools.clock import StepInfo
    from dittools.error_bound import ErrorBound
    from dittools.plans.loaded import LoadedPlans
    from dittools.plans.record import PlanRecord


class KeptOf(NamedTuple):
    """What a piece of a sparse call kept of each kind of pair.

    Args:
        grid: of its tokens.
        lanes: samples times heads.
        kept: from `dittools.kinds.kept_by_kind`; a scalar where there is but one kind.
        beside: (kind of queries, kind of keys, pairs) that are computed beside these, of all lanes together.
        queries: how many queries each kind has.
    """

    grid: TokenGrid
    lanes: int
    kept: torch.Tensor
    beside: tuple[tuple[str, str, int], ...]
    queries: dict[str, int]


class Call(NamedTuple):
    """One self-attention call that ran. ``density`` is None for a dense call, else a scalar tensor; so is ``kernel``,
    the name of the sparse kernel. ``parts`` are its pieces by kinds of pairs. ``own`` is the density of this rank's
    queries, where others attend for the others. ``error`` is from `dittools.row_errors.sums_of_rows`, where asked."""

    step: int
    layer: int
    pairs: float
    density: torch.Tensor | None
    kernel: str | None = None
    parts: tuple[KeptOf, ...] = ()
    own: torch.Tensor | float | None = None
    error: torch.Tensor | None = None


class Exchanged:
    """What went to other ranks: bytes of this one, and the stopwatches of every exchange."""

    def __init__(self):
        self.bytes = 0
        self.watches: list[Stopwatch] = []

    @property
    def seconds(self) -> float:
        """Seconds of all exchanges. On CUDA it waits."""
        return sum(watch.seconds or 0.0 for watch in self.watches)


class CachedPlan(NamedTuple):
    """A plan to use again, and the step and branch it was made in. ``plan`` makes it: little is held in between."""

    step: int
    branch: str
    shape: tuple
    plan: Callable[[], Plan]
    density: torch.Tensor
    by_kind: torch.Tensor | None = None


class Run:
    """One run. A new one replaces it, so nothing of an old run can leak into the next.

    Args:
        grid: token layout of the latest call; None for a run that never was.
        steps: number of denoising steps in the schedule.
        layers: number of self-attention layers.
        block_size: tokens in a block.
    """

    def __init__(self, grid: TokenGrid | None, steps: int, layers: int, block_size: int):
        self.grid = grid
        self.steps = steps
        self.layers = layers
        self.method: Method | None = None  # what decides the pairs; None when the whole run is dense
        self.why_dense: str | None = None  # with no method, the reason; None when dense is what was asked for
        self.block_size = block_size
        self.profile: Profile | None = None
        self.sparse_layers: dict[int, tuple[int, ...]] = {}  # by layer, those of its transformer that may run sparse
        self.correction: Correction | None = None
        self.loaded: LoadedPlans | None = None  # what decides the pairs in place of the method, where a file does
        self.recorded: PlanRecord | None = None  # what it decides, where that is kept
        self.bound: ErrorBound | None = None  # on the error of its sparse calls
        self.branches: set[str] = set()  # seen so far
        self.first_step: int | None = None  # of the first call
        self.first = 0  # first step that runs
        self.tally = Tally([])
        self.over = False  # nothing more can come: its caller has returned
        self.plans: dict[tuple, CachedPlan] = {}  # (layer, branch, which part of which call); branch "" is for all
        self.caches: dict[TokenGrid, ScopedCache] = defaultdict(ScopedCache)
        self.states: dict[tuple, ScopedCache] = defaultdict(ScopedCache)  # of a method, by the same key as plans
        self.calls: list[Call] = []
        self.facts: list[tuple[int, dict[str, torch.Tensor]]] = []
        self.fallbacks: Counter[str] = Counter()
        self.notes: dict[str, None] = {}  # a set that keeps its order
        self.plans_reused = 0  # from an earlier step
        self.plans_shared = 0  # from another branch of the step
        self.reused_calls = 0  # self-attention calls that a cache saved
        self.reuse: StepCache | None = None  # the step cache of this run
        self.dtype: torch.dtype | None = None  # of the latest attention call
        self.dense_from: set[tuple[int, int]] = set()  # (step, layer) forced dense after a non-finite result
        self.forwards: list[tuple[int, Stopwatch]] = []
        self.kernels: dict[tuple, str] = {}  # the kernel of each kind of sparse call
        self.kernel_reasons: dict[str, str] = {}  # by kernel, why a call could not have the faster one of its card
        self.why_no_kernel: dict[tuple, str | None] = {}  # by device, dtype and head dim
        self.ranks: Ranks = ALONE  # that make it together
        self.copies = 1  # of these, that have the same heads
        self.exchanged = Exchanged()
        self.kept_by_rank: list[tuple[list[float], torch.Tensor]] = []  # by forward, as `dittools.agreement` has it
        self.kept_elsewhere: list[tuple[list[float], torch.Tensor]] = []  # the same of ranks that make other branches
        self.picked_correction = False  # by method auto
        self.shared: Branches | None = None  # who makes which branch, where groups of ranks share them
        self._sums: list[tuple[int, torch.Tensor]] = []  # of the outputs of this forward, with their layers
        self.head_costs: list[tuple[int, Heads, torch.Tensor]] = []  # of this forward, pairs by head ``[h]``
        self.costs: dict[int, torch.Tensor] = {}  # of the latest step by layer, pairs of all heads ``[H]``
        self.deals: dict[int, tuple[tuple[int, ...], ...]] = {}  # heads by rank, of layers where they are dealt
        self._heads: dict[tuple, tuple[int, ...]] = {}  # whose states these are

    def begin_forward(self, step: StepInfo, part: int) -> None:
        """A forward of a transformer starts."""
        self.steps = max(self.steps, step.steps)
        if not self.branches:
            self.first_step = step.step
        if step.known:
            self.branches.add(step.branch)
        self.tally.begin(step.step, part, step.known)

    def count_dense(self, call: AttentionInputs, step: int) -> None:
        """Count an attention call that runs dense."""
        self.calls.append(Call(step, call.layer, call.pairs, None))
        self.dtype = call.q.dtype

    def mark(self) -> tuple[int, int, Counter[str], tuple[int, int]]:
        """Where the counters stand, for `rewind`."""
        return len(self.calls), len(self.facts), self.fallbacks.copy(), (self.plans_reused, self.plans_shared)

    def rewind(self, mark: tuple[int, int, Counter[str], tuple[int, int]], branch: str) -> None:
        """Forget what was counted and planned since ``mark``: that forward is run again."""
        calls, facts, fallbacks, (self.plans_reused, self.plans_shared) = mark
        self.fallbacks = fallbacks.copy()  # the mark may be needed again
        layers = {call.layer for call in self.calls[calls:]}
        for kept in (self.plans, self.states):
            for key, held in list(kept.items()):
                if key[0] in layers and branch in (key[1], getattr(held, "branch", None)):
                    del kept[key]
        if self.recorded is not None and len(self.calls) > calls:
            self.recorded.forget(self.calls[calls].step, branch)
        del self.calls[calls:], self.facts[facts:]
        self.head_costs.clear()

    def state_of(self, key: tuple, heads: Heads) -> ScopedCache:
        """What a layer and branch carry from step to step, of the heads that this rank has now."""
        if self._heads.setdefault(key, heads.mine) != heads.mine:
            self.states.pop(key, None)
            self._heads[key] = heads.mine
        return self.states[key]

    def carries(self, layer: int) -> bool:
        """Whether anything of this layer's heads is kept from step to step."""
        return any(key[0] == layer and state for key, state in self.states.items())

    def let_go(self) -> None:
        """Let go of all tensors that calls to come would need; what was counted stays."""
        self.plans.clear()
        self.states.clear()
        self.caches.clear()
        if self.reuse is not None:
            self.reuse.release()

    def let_go_of(self, branch: str) -> None:
        """Let go of the plans of one branch, which has had its last call."""
        for kept in (self.plans, self.states):
            for key in [key for key in kept if key[1] == branch]:
                del kept[key]

    def flag_non_finite(self, layer: int, out: torch.Tensor) -> None:
        """Remember on the device whether ``out`` holds a NaN or inf."""
        # A sum is finite if and only if its terms are, short of an overflow in fp32; it reads `out` once.
        self._sums.append((layer, out.sum(dtype=torch.float32)))

    def non_finite_flags(self, device: torch.device) -> torch.Tensor:
        """As `non_finite_layers` a flag for each layer, int32 ``[layers]``. Nothing waits for the device."""
        flags = torch.zeros(self.layers, dtype=torch.int32, device=device)
        if self._sums:
            layers, sums = zip(*self._sums, strict=True)
            self._sums.clear()
            bad = torch.stack(sums).isfinite().logical_not().int().to(device)
            flags.index_add_(0, torch.tensor(layers, device=device), bad)
        return flags

    def non_finite_layers(self) -> list[int]:
        """Layers flagged since the last time this was asked. Waits for the device."""
        if not self._sums:
            return []
        layers, sums = zip(*self._sums, strict=True)
        self._sums.clear()
        finite = torch.stack(sums).isfinite().tolist()
        return sorted({layer for layer, fine in zip(layers, finite, strict=True) if not fine})

    def densities(self, calls: list[Call]) -> list[float]:
        """Kept share of each call. Waits for the device once."""
        distinct = list({id(c.density): c.density for c in calls if c.density is not None}.values())
        values = torch.stack(distinct).tolist() if distinct else []
        known = {id(tensor): value for tensor, value in zip(distinct, values, strict=True)}
        return [1.0 if c.density is None else known[id(c.density)] for c in calls]

    def skipped(self, calls: list[Call]) -> float | None:
        """Share of all pairs of these calls that was skipped; None where there are none."""
        pairs = sum(c.pairs for c in calls)
        if not pairs:
            return None
        return 1 - sum(c.pairs * d for c, d in zip(calls, self.densities(calls), strict=True)) / pairs

    def kept_by_kind(self) -> dict[str, tuple[float, float]]:
        """Of each kind of pair, "queries-keys", the kept share over all sparse calls, and what share of all their
        pairs it is. Waits for the device once.
        """
        pieces = [part for call in self.calls if call.density is not None for part in call.parts]
        distinct = {id(part.kept): part.kept for part in pieces}
        numbers = torch.cat([x.flatten() for x in distinct.values()]).tolist() if distinct else []
        known, at = {}, 0
        for key, tensor in distinct.items():
            known[key] = numbers[at : at + tensor.numel()]
            at += tensor.numel()
        kept, pairs = Counter(), Counter()
        for part in pieces:
            kinds = kinds_of(part.grid)
            for (one, other), share in zip(product(kinds, kinds), known[id(part.kept)], strict=True):
                weight = float(part.lanes) * part.queries[one] * kinds[other]
                if weight:
                    pairs[f"{one}-{other}"] += weight
                    kept[f"{one}-{other}"] += weight * share
            for one, other, count in part.beside:
                pairs[f"{one}-{other}"] += count
                kept[f"{one}-{other}"] += count
        total = sum(pairs.values())
        return {name: (kept[name] / weight, weight / total) for name, weight in pairs.items()}

    def pair_budget(self) -> dict[str, float | None]:
        """Shares of the pairs of a dense run without a cache: computed, skipped by sparsity, saved by reuse.

        A call that was reused counts as large as those that ran, on average.
        """
        ran = sum(call.pairs for call in self.calls)
        if not ran:
            return {"computed": None, "skipped": None, "reused": None}
        skipped = (self.skipped(self.calls) or 0.0) * ran
        reused = self.reused_calls * ran / len(self.calls)
        total = ran + reused
        return {"computed": (ran - skipped) / total, "skipped": skipped / total, "reused": reused / total}

    def fact_counts(self) -> list[dict[str, int]]:
        """Facts of the plans made, summed for each layer."""
        counts: list[dict[str, int]] = [defaultdict(int) for _ in range(self.layers)]
        names = [(layer, name) for layer, facts in self.facts for name in facts]
        values = [value.sum() for _, facts in self.facts for value in facts.values()]
        numbers = torch.stack(values).tolist() if values else []
        for (layer, name), number in zip(names, numbers, strict=True):
            counts[layer][name] += number
        return [dict(c) for c in counts]

    def step_seconds(self) -> list[float | None]:
        """Transformer seconds of each step; None for a step that did not run. On CUDA it waits."""
        seconds: list[float | None] = [None] * self.steps
        for step, watch in self.forwards:
            if watch.seconds is not None and step < self.steps:
                seconds[step] = (seconds[step] or 0.0) + watch.seconds
        return seconds
