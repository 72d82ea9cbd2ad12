"""One sparse attention call: each piece of it planned, attended and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from dittools.attention import attend
from dittools.call_info import AttentionInputs, SharedTokens
from dittools.clock import StepInfo
from dittools.config import Config
from dittools.corrections import SparseCall
from dittools.kernels.block_sparse.dispatch import check_call
from dittools.kernels.block_sparse.sample import Sample
from dittools.kernels.capability import why_not
from dittools.kernels.choice import choose, why_slower
from dittools.kernels.clusters.dispatch import check_clusters
from dittools.kernels.first_use import PASSED_OVER, SPENT
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kinds import kept_by_kind
from dittools.methods.base import AttentionCall, Plan, StayDense, compact
from dittools.observer import AttentionEvent
from dittools.parts import part
from dittools.row_errors import drawn_rows, estimate, exact_rows, sums_of_rows
from dittools.run import CachedPlan, Call, KeptOf, Run
from dittools.sequence import SubCall
from dittools.tokens import TokenGrid

OnResult = Callable[[AttentionCall, tuple[torch.Tensor, ...], Plan, torch.Tensor, Sample | None], None]
"""Is told of (call, (q, k, v), plan, output, sample) as soon as the attention of a sparse call is done, the keys of a
sample among what was attended; ``[B, S, H, D]``."""


class Planned(NamedTuple):
    """A plan, the share of pairs it keeps, of each kind too, and whether this branch has not had it before."""

    plan: Plan
    density: torch.Tensor
    by_kind: torch.Tensor | None
    fresh: bool


class Sparse:
    """Runs the sparse calls of one run: plan, attend, correct, count.

    Args:
        run: what is planned, kept and counted.
        config: what the user asked for.
        plan_watchers: told of every piece of a call and its plan.
        result_watchers: told of every piece of a call with q, k and v, its plan and what attention made of it.
    """

    def __init__(
        self,
        run: Run,
        config: Config,
        plan_watchers: Sequence[Callable[[AttentionEvent, Plan], None]] = (),
        result_watchers: Sequence[OnResult] = (),
    ):
        self.run, self._config = run, config
        self._plan_watchers, self._result_watchers = plan_watchers, result_watchers

    def attend(self, inputs: AttentionInputs, step: StepInfo, number: int, parts: list[SubCall]) -> torch.Tensor | None:
        """The call, piece by piece; one `Call` is counted for all.

        Args:
            inputs: the call; its mask is for rows that no piece takes.
            step: step and branch.
            number: which call of this layer in the forward.
            parts: what sparse calls take of it.

        Returns:
            ``[B, S, H, D]``; None when the method wants this call dense, which is counted as a fallback.
        """
        run = self.run
        layer, q, k, v, scale, mask = inputs[:6]
        shared = inputs.shared
        if run.bound is not None:
            if not inputs.alone or run.shared is not None:
                raise ValueError("max_error is for one device, and several ranks share this run: leave it out")
            if (why := run.bound.why_dense(layer, step.step)) is not None:
                run.fallbacks[why] += 1
                if run.recorded is not None:
                    pieces = [(number, index) for index in range(len(parts))]
                    run.recorded.stays(step.step, layer, step.branch, pieces, why)
                return None
        if shared is not None and run.picked_correction:
            run.notes[f"correction {run.correction.name} is left out: a ring would bring all keys together"] = None
            run.correction, run.picked_correction = None, False
        if shared is not None and (not parts[0].whole or self._plan_watchers or self._result_watchers):
            shared.whole("q", "k", "v")
        heads = inputs.heads.total(q.shape[2])
        out = None if parts[0].whole else torch.empty_like(q)
        pairs, kept, kernel = 0.0, 0.0, None
        kinds, own, errors = [], [], []
        for index, piece in enumerate(parts):
            keys = piece.take(k)
            taken = (piece.take_queries(q, keys), keys, piece.take(v))
            call = self._call(inputs, step, piece.grid, (number, index))
            with part("select"), self._noting_kernels():
                planned = self._plan(*taken, call, (number, index), shared)
            if run.recorded is not None:
                stays = isinstance(planned, StayDense)
                run.recorded.note(call, (number, index), *((planned,) if stays else (planned.plan, planned.fresh)))
            if isinstance(planned, StayDense):
                run.fallbacks[planned.reason] += 1
                return None
            for watch in self._plan_watchers:
                watch(AttentionEvent(layer, *taken, scale, step, piece.grid), planned.plan)
            if shared is not None:
                planned = self._bring(shared, piece, planned)
            elif piece.own is not None:
                plan = planned.plan.owned(piece.own)
                planned = planned._replace(plan=plan, density=piece.own.density(plan))
            join = partial(piece.join, q=taken[0], k=k, v=v, scale=scale) if piece.beside else None
            result, made_up, kernel = self._piece(taken, planned, call, join)
            if self._config.exact_rows and shared is not None:
                run.notes["error_rows: nothing is told of sparse calls whose queries several ranks share"] = None
            elif self._config.exact_rows and kernel is not None:
                errors.append(self._row_sums(taken, result, call, planned.plan, join))
            density = _with(made_up, planned.density)
            by_kind = planned.density if planned.by_kind is None else planned.by_kind
            by_kind = by_kind if kernel is None else _with(made_up, by_kind)
            beside = piece.pairs_beside(len(taken[0]))
            seen = tuple((*which, count * heads) for which, count in beside.items())
            kinds.append(KeptOf(piece.grid, len(taken[0]) * heads, by_kind, seen, piece.kinds))
            size = float(len(taken[0])) * piece.pairs
            more = float(beside.total() + len(taken[0]) * piece.more)
            pairs += size + more
            if shared is not None:
                mine = planned.plan.own
                computed = _with(made_up, mine.density(planned.plan))
                own.append((len(taken[0]) * mine.count * piece.grid.tokens, computed))
            if not inputs.heads.alone:
                by_head = _with(made_up, planned.plan.density().mean(0)).expand(q.shape[2]) * size
                run.head_costs.append((layer, inputs.heads, by_head))
            if len(parts) > 1 or more:
                kept = size * density + more + kept
            if out is None:
                out = result
                continue
            piece.scatter(result, out)
            if piece.rest is not None:
                piece.scatter_rest(q, k, v, mask, scale, out)
        # With one piece the density itself, a plan's own tensor: it is read from the device once for all steps.
        share = density if len(parts) == 1 and not more else kept / pairs
        if kernel is None:
            share = None
        computed = sum(size * each for size, each in own) / sum(size for size, _ in own) if own else None
        error = sum(errors[1:], errors[0]) if errors and kernel is not None else None
        if run.bound is not None and error is not None and (why := self._above(layer, step.step, error)):
            run.fallbacks[why] += 1
            return None
        run.calls.append(Call(step.step, layer, pairs * heads, share, kernel, tuple(kinds), computed, error))
        run.dtype = q.dtype
        with part("check"):
            run.flag_non_finite(layer, out)
        return out

    def _bring(self, shared: SharedTokens, piece: SubCall, planned: Planned) -> Planned:
        """The plan for this rank's queries, once the keys and values that they want are here."""
        plan = planned.plan.owned(shared.rows(piece))
        if self.run.correction is not None:
            shared.whole(*self.run.correction.reads(planned.fresh))
        if plan.keys is not None or plan.rows is not None:
            shared.whole("k", "v")
        shared.fetch(plan)
        return planned._replace(plan=plan)

    def _piece(
        self, taken: tuple[torch.Tensor, ...], planned: Planned, call: AttentionCall, join: Callable | None
    ) -> tuple[torch.Tensor, torch.Tensor | float, str | None]:
        """Output, share of the skipped pairs that a correction computed, and kernel; none where it computed all.

        ``join``: adds the keys beside the piece, as `SubCall.join`: before a correction, which weighs what was skipped
        against all that was computed.
        """
        plan, fresh = planned.plan, planned.fresh
        correction = self.run.correction
        if correction is not None and plan.keys is not None:
            raise ValueError(
                f"correction {correction.name} makes up for skipped blocks, and {self.run.method.name} takes fewer "
                "keys instead: use correction none"
            )
        kernel = self._kernel(*taken, plan)
        if isinstance(plan.mask, BlockMask):  # whose lists every kernel walks, and would make where they are not there
            with part("lists"):
                (plan.mask if plan.own is None or plan.keys is not None else plan.cut().mask).kv_blocks()
            if fresh and plan.keys is None:
                check_call(*taken, plan.mask, plan.order)
        elif fresh:
            check_clusters(*taken, plan.mask, plan.order, plan.key_order)
        asked = self._asked(call.layer)
        with part("attention"):
            sample = None if correction is None else correction.sample(plan, call, asked)
            needs_lse = join is not None or correction is not None
            out, lse = attend(*taken, plan, call.scale, kernel, return_lse=needs_lse, known=True, sample=sample)
        for watch in self._result_watchers:
            watch(call, taken, plan, out, sample)
        if join is not None:
            out, lse = join(out, lse)
        if correction is None:
            return out, 0.0, kernel
        with part("correct"):
            # A key no method uses: what the run forgets of a layer, it forgets of both.
            state = call.branch_state.setdefault(correction, {})
            done = correction.correct(SparseCall(*taken, plan, fresh, out, lse, call, state, asked, sample, join))
        if plan.rows is not None:  # of which nothing was skipped
            plan.rows.copy(out, done.out)
        self.run.notes.update(dict.fromkeys(done.notes))
        return done.out, 1.0 if done.dense else done.computed, None if done.dense else kernel

    def _above(self, layer: int, step: int, sums: torch.Tensor) -> str | None:
        """Why a call may not stand, by what exact rows say of it. Waits for the device."""
        bound = self.run.bound
        before = bound.density(layer)
        why = bound.told(layer, step, estimate(sums.tolist()))
        if bound.density(layer) != before:  # a plan that is kept has the old budget
            for key in [key for key in self.run.plans if key[0] == layer]:
                del self.run.plans[key]
        return why

    def _row_sums(
        self,
        taken: tuple[torch.Tensor, ...],
        out: torch.Tensor,
        call: AttentionCall,
        plan: Plan,
        join: Callable | None,
    ) -> torch.Tensor:
        """How far some rows of a piece are from their exact output, as `dittools.row_errors` has it."""
        rows = drawn_rows(taken[0], plan, self._config.exact_rows, call.generator)
        with part("errors"):
            exact = exact_rows(*taken, rows, scale=call.scale, block_size=call.block_size, join=join)
            return sums_of_rows(out.index_select(1, rows), exact)

    def _kernel(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> str:
        """The kernel for a sparse call; plain PyTorch on a GPU is noted with the reason."""
        mask = plan.mask
        blocks = (mask.query.size, mask.key.size) if isinstance(mask, BlockMask) else None
        learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        kind = (q.device, q.dtype, q.shape[-1], blocks, plan.order is None, learning)
        if kind not in self.run.kernels:
            self.run.kernels[kind] = self._choose(q, k, v, plan)
        return self.run.kernels[kind]

    def _choose(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> str:
        with self._noting_kernels():
            name = choose(q, k, v, plan.mask, order=plan.order)
        if name == "portable" and q.device.type == "cuda":
            self.run.notes[f"plain PyTorch kernel on the GPU: {why_not('triton', q, k, v, plan.mask)}"] = None
        if reason := why_slower(name, q, k, v, plan.mask, order=plan.order):
            self.run.kernel_reasons[name] = reason
            self.run.notes[f"kernel {name} in place of hopper, which is faster on this card: {reason}"] = None
        return name

    @contextmanager
    def _noting_kernels(self) -> Iterator[None]:
        """Note what choosing kernels cost inside of this, and that block mass was measured by a slower one."""
        proofs = len(SPENT)
        PASSED_OVER.clear()
        yield
        for kernel, seconds in list(SPENT.items())[proofs:]:
            self.run.notes[f"{seconds:.0f} s of this run went into the proof of {kernel} at its first use"] = None
        if reason := PASSED_OVER.get("hopper-mass"):
            self.run.notes[f"block mass by a kernel that is slower than this card's own: {reason}"] = None

    def _call(self, inputs: AttentionInputs, step: StepInfo, grid: TokenGrid, part: tuple[int, int]) -> AttentionCall:
        run, layer = self.run, inputs.layer
        return AttentionCall(
            layer=layer,
            layers=run.layers,
            branch=step.branch,
            step=step.step,
            steps=step.steps,
            grid=grid,
            sparsity=self._sparsity_of_plans(layer),
            scale=inputs.scale,
            generator=torch.Generator().manual_seed(self._seed(step.step, layer)),
            block_size=run.block_size,
            run_cache=run.caches[grid],
            branch_state=run.state_of((layer, step.branch, part), inputs.heads),
            profile=run.profile,
            sparse_layers=run.sparse_layers.get(layer, ()),
            heads=inputs.heads,
            own=inputs.own,
            halved=run.shared is not None and run.shared.halves,
            seed=self._seed(0, layer),
        )

    def _asked(self, layer: int) -> float:
        """Share of a layer's pairs to skip: what the user asked, or what the bound on its error leaves it."""
        return self._config.sparsity if self.run.bound is None else 1 - self.run.bound.density(layer)

    def _sparsity_of_plans(self, layer: int) -> float:
        """What methods are asked to skip: more than in all where a correction computes pairs too."""
        asked, correction = self._asked(layer), self.run.correction
        return asked if correction is None else correction.sparsity_of_plans(asked, self.run.block_size)

    def _plan(
        self, q, k, v, call: AttentionCall, part: tuple[int, int], tokens: SharedTokens | None
    ) -> Planned | StayDense:
        """A plan made now, or one that is kept: from a step before, from another branch of this step, or in a file."""
        run, shape = self.run, (q.shape, q.dtype, q.device, call.heads.mine)
        if run.loaded is not None:
            found = run.loaded.plan(q, call, part)
            if isinstance(found, StayDense):
                return found
            plan, fresh = found
            return Planned(plan, plan.share, kept_by_kind(plan, call.grid), fresh)
        if call.own is not None:  # the model's choice is of this very call
            plan = run.method.plan(q, k, v, call)
            return Planned(plan, plan.share, kept_by_kind(plan, call.grid), True)
        refresh = max(self._config.refresh, run.correction.keeps_plans if run.correction else 1)
        if run.bound is not None and run.bound.keeps_plan(call.layer):
            refresh = call.steps + 1
        # In the first step nobody knows yet whether there will be another branch.
        shared = self._config.share_branches and (len(run.branches) > 1 or call.step == run.first_step)
        alone = None if shared else run.plans.pop((call.layer, "", part), None)
        if alone is not None and refresh > 1:
            run.plans[call.layer, alone.branch, part] = alone
        place = (call.layer, "" if shared else call.branch, part)
        known = self._known(place, shape, call, refresh)
        if known is None and shared and run.shared is not None and run.shared.leader and run.method.reads:
            run.shared.await_plan(place, call.step)
            known = self._known(place, shape, call, refresh)
        if known is not None:
            return known
        plan = self._corrected_plan(q, k, v, call, tokens)
        if isinstance(plan, StayDense):
            return plan
        by_kind = kept_by_kind(plan, call.grid)
        # What reads nothing is the same in all branches, and need not be told.
        leader = run.shared.leader if shared and run.shared is not None and not run.method.reads else None
        if run.bound is not None:
            run.bound.planned(call.layer)
        if refresh > 1 or shared or run.bound is not None:
            packed = compact(plan, q.shape, run.layers)
            made = CachedPlan(call.step, leader or call.branch, shape, packed, plan.share, by_kind)
            run.plans[place] = made
            if shared and run.shared is not None and run.method.reads:
                run.shared.tell_plan(place, made, plan)
        if leader is not None:
            return self._known(place, shape, call, refresh)
        more = {} if run.correction is None else run.correction.facts(call)
        run.facts.append((call.layer, {**plan.facts, **more}))
        run.notes.update(dict.fromkeys(plan.notes))
        return Planned(plan, plan.share, by_kind, True)

    def _corrected_plan(self, q, k, v, call: AttentionCall, tokens: SharedTokens | None) -> Plan | StayDense:
        """The method's answer, with which the correction may do something of its own."""
        run = self.run

        def make(sparsity: float = call.sparsity) -> Plan | StayDense:
            if sparsity == call.sparsity:
                return self._made_alike(q, k, v, call, tokens)
            state = call.branch_state.setdefault("at another sparsity", {})
            drawn = torch.Generator().manual_seed(call.generator.initial_seed())
            other = replace(call, sparsity=sparsity, branch_state=state, generator=drawn)
            return self._made_alike(q, k, v, other, tokens)

        def whole() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            if tokens is not None:
                tokens.whole("q", "k", "v")
            return q, k, v

        if run.correction is None:
            return make()
        if run.shared is not None or run.recorded is not None:
            if run.correction.differs_by_head:
                why = "is told to another rank" if run.recorded is None else "goes to a file"
                run.notes[f"{run.correction.name}: all heads alike, as a plan that {why} tells of none"] = None
            return make()
        return run.correction.plan(make, call, whole, self._asked(call.layer))

    def _known(self, place: tuple, shape: tuple, call: AttentionCall, refresh: int) -> Planned | None:
        """A kept plan that serves this call too."""
        run, kept = self.run, self.run.plans.get(place)
        if kept is None or kept.shape != shape:
            return None
        others = kept.step == call.step and kept.branch != call.branch
        if not others and (refresh == 1 or call.step - kept.step >= refresh):
            return None
        run.plans_reused += not others
        run.plans_shared += others
        return Planned(kept.plan(), kept.density, kept.by_kind, others)

    def _made_alike(self, q, k, v, call: AttentionCall, tokens: SharedTokens | None) -> Plan | StayDense:
        """The method's answer, of all tokens; what it reads of them is brought here first."""
        reads = self.run.method.reads
        if tokens is None or not reads:
            return self._made(q, k, v, call)
        tokens.whole(*reads)
        plan, reason = tokens.ranks.together(
            lambda: self._made(q, k, v, call), lambda made: made.reason if isinstance(made, StayDense) else None
        )
        return plan if reason is None else StayDense(reason)

    def _made(self, q, k, v, call: AttentionCall) -> Plan | StayDense:
        """The method's answer; where ranks have to wait for each other, one that all of them give."""
        method, ranks = self.run.method, call.heads.ranks
        if call.grid.shape != self.run.grid.shape and (why := method.why_not(call.grid, call.block_size)):
            self.run.notes[f"some queries see all keys that their mask shows them: {why}"] = None
            blocks = Partition(call.grid.tokens, call.block_size)
            return Plan(None, BlockMask.full(blocks, blocks, q.device))
        if call.heads.alone or not method.asks_others(q, call):
            return method.plan(q, k, v, call)
        if not method.knows_heads:
            self.run.notes[
                f"method {method.name} does not know of heads on other ranks: what heads share, those of a rank do"
            ] = None
        plan, reason = ranks.together(
            lambda: method.plan(q, k, v, call), lambda made: made.reason if isinstance(made, StayDense) else None
        )
        return plan if reason is None else StayDense(reason)

    def _seed(self, step: int, layer: int) -> int:
        return ((self._config.seed * 100_003 + step) * 10_007 + layer) % (1 << 63)


def _with(more: torch.Tensor | float, kept: torch.Tensor | float) -> torch.Tensor | float:
    """Kept shares of pairs, and this share of the others."""
    return kept if isinstance(more, float) and more == 0 else kept + (1 - kept) * more
