"""The one place where calls are decided: dense or sparse, computed or reused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from dittools import attention_profile as profile
from dittools.agreement import agreed_layers, deal_heads, share_counts
from dittools.caches.state import Model
from dittools.call_info import AttentionInputs, CallInfo, Layer
from dittools.call_splitter import CallSplitter
from dittools.clock import StepClock, StepInfo
from dittools.config import Config
from dittools.methods.base import Plan
from dittools.observer import AttentionEvent
from dittools.progress import OnStep
from dittools.ranks import ALONE, Heads, Ranks
from dittools.run import Call, Run
from dittools.run_setup import RunSetup
from dittools.runs_under_way import RunsUnderWay
from dittools.sparse import OnResult, Sparse
from dittools.stopwatch import Stopwatch
from dittools.tokens import Layout, TokenGrid

if TYPE_CHECKING:
    from dittools.branches import Branches


class Runtime:
    """Decides every self-attention call of one acceleration.

    A transformer forward is `begin_call`, one `attend` a layer, `end_call`; when `end_call` says so, the
    layers run again. Counters are those of the latest run.

    Args:
        config: what the user asked for.
        layers: all self-attention layers, those of a second transformer after those of the first.
        model: what a cache's profile may ask of the model.
        identity: what a profile of methods has to fit; None where nobody knows.

    Raises:
        ValueError: when the cache knows nothing of this model, or a profile cannot be read or is of another model.

    Attributes:
        listeners: called once for every finished step with (step, steps, skipped share of its pairs, seconds
            of its transformer forwards); steps count from 0. On CUDA a report waits for the device.
        watchers: called with every self-attention call of the grid's length, before it is decided.
        plan_watchers: called with every sparse call and its plan.
        result_watchers: called with what the attention of every sparse call gave, as `dittools.sparse.OnResult`.
        latest: step and branch of the latest transformer call, or None before the first.
    """

    def __init__(
        self,
        config: Config,
        layers: Sequence[Layer],
        model: Model | None = None,
        identity: profile.Model | None = None,
    ):
        self.config = config
        self.layers = list(layers)
        self.listeners: list[OnStep] = []
        self.watchers: list[Callable[[AttentionEvent], None]] = []
        self.plan_watchers: list[Callable[[AttentionEvent, Plan], None]] = []
        self.result_watchers: list[OnResult] = []
        self.latest: StepInfo | None = None
        self._setup = RunSetup(config, layers, model or Model(), identity)
        self._runs = RunsUnderWay(lambda: StepClock(config.dense_steps, config.dense_last_steps))
        self._splitter = CallSplitter(config)
        self._sparse: Sparse | None = None  # of the present run
        self._step: StepInfo | None = None  # set between begin_call and end_call
        self._calls: dict[int, int] = {}  # attention calls of each layer in this forward
        self._mark = None
        self._reruns = 0
        self._sparse_in_call = False
        self._ranks: Ranks = ALONE  # of the present forward
        self._shared: tuple[float, int] | None = None  # as `share_counts` has it, once a call came that ranks share
        self._branches: Branches | None = None  # of the present forward, where groups of ranks share them
        self._undecided = False  # whether the step cache decides it on its way, as it is shared
        self._held_back: Exception | None = None  # raised in this forward, which the other ranks have to end first

    @property
    def run(self) -> Run | None:
        """The latest run, or None before the first."""
        return self._runs.run

    @property
    def identity(self) -> profile.Model | None:
        """What a profile of methods has to fit; None where nobody knows."""
        return self._setup.identity

    def keep_plans(self) -> None:
        """Runs to come keep what they decide, so that it can be exported: each plan then waits for the device."""
        self._setup.keep_plans = True

    @property
    def cache(self):
        """The step cache with its settings; None without one."""
        return self._setup.cache

    @property
    def ranks(self) -> Ranks:
        """Those that make the present forward together."""
        return self._ranks

    @property
    def layout(self) -> Layout | None:
        """Where the picture is in the calls of the present forward; None where its grid is not known."""
        return self._splitter.layout

    def begin_call(self, info: CallInfo) -> bool | None:
        """A transformer forward starts. True: compute it. False: reuse. None: `StepCache.watch` decides on the way.

        Only where a cache is on and ``info.reusable`` is given the answer is not True. A computed forward ends with
        `end_call` and, for the cache, ``run.reuse.update``; a reused one with `end_reused`.

        Raises:
            ValueError: when a profile was asked for that does not fit this grid.
        """
        step, runs = self._observe(info), self._runs
        if info.branches is not None and (step.new_run or self.latest is None or step.step != self.latest.step):
            info.branches.settle()
        if step.new_run or runs.run is None:
            # Two steps, so that no old run stays behind when the new one cannot start.
            runs.run = self._step = self._sparse = None
            runs.begin(self._setup.new_run(info, step, runs.clock), self.listeners, info.life, info.source)
        elif info.grid is not None and info.grid.shape != _shape(runs.run.grid):
            self._setup.change_grid(runs.run, info, step)
        run = runs.run
        if self._sparse is None or self._sparse.run is not run:
            self._sparse = Sparse(run, self.config, self.plan_watchers, self.result_watchers)
        if run.costs and self.latest is not None and step.step != self.latest.step and self._deals(run):
            deal_heads(run)
        self._step = self.latest = step
        self._ranks = run.ranks = info.ranks
        self._shared = self._held_back = None
        run.begin_forward(step, info.part)
        self._branches, self._undecided = info.branches, False
        if self._branches is not None:
            self._branches.begin(run, step, info.part, runs.reports)
        self._splitter.begin(info.grid, info.layout, info.why_no_grid)
        self._calls = {}
        self._mark, self._reruns, self._sparse_in_call = run.mark(), 0, False
        runs.reports.begin_call(step.step)
        run.forwards.append((step.step, Stopwatch(info.device)))
        if not step.known:
            run.tally.note_unknown(runs.clock.strange)
        return True if run.reuse is None else self._begin_reuse(info, step, run)

    def _deals(self, run: Run) -> bool:
        """Whether heads may change ranks from step to step: not where plans are kept for longer, or who plans does not
        know of them.
        """
        kept = max(self.config.refresh, run.correction.keeps_plans if run.correction else 1)
        return kept == 1 and run.method is not None and run.method.knows_heads

    def _observe(self, info: CallInfo) -> StepInfo:
        """The step of a forward, in the run that it belongs to."""
        timing = info.timing
        self._runs.turn_to(timing.timesteps, info.source)
        return self._runs.clock.observe(
            timing.timestep,
            timing.timesteps,
            # Two prompts of one run may differ in length, so the text is no part of what a run is known by.
            signature=(_shape(info.grid), info.device, info.dtype),
            branch=timing.branch,
            step_index=timing.step_index,
            steps=timing.steps,
            first=timing.first,
        )

    def _begin_reuse(self, info: CallInfo, step: StepInfo, run: Run) -> bool | None:
        """What the step cache decides of a forward."""
        if not step.known or step.counted:
            run.reuse.pass_by(step, info.part, "its step is not known" if not step.known else "no schedule is known")
            return True
        given = info.reusable
        if given is None:
            return True
        branches, run.reuse.ranks = self._branches, info.ranks
        if branches is not None:
            if branches.halves or not run.reuse.signal_source.startswith("block"):
                run.reuse.ranks = branches.everyone(info.ranks)  # who all see the same
            if run.reuse.needs_others(step.step) and branches.before is not None:
                branches.settle(branches.before)
        known = given.noise(step.step, step.steps) if given.noise is not None and self.cache.needs_noise else None
        why = given.why_compute(run) if callable(given.why_compute) else given.why_compute
        answer = run.reuse.begin(step, info.part, given.latents, known, why, form=given.form, tokens=given.tokens)
        self._undecided = answer is None and branches is not None
        if self._undecided and not branches.here:
            entry = branches.hear_verdict()
            return True if entry is None else run.reuse.hear(entry)
        return answer

    def decided(self) -> None:
        """`StepCache.watch` has decided the present forward on its way."""
        if self._undecided:
            self._branches.tell_verdict(self.run.reuse.log[-1])

    def end_reused(self) -> None:
        """The forward is over: its output was reused, so that none of its self-attention calls ran, or only those
        before the decision.
        """
        branches = self._branches
        if self._undecided and not branches.here:
            self.end_elsewhere()
            return
        self.run.reused_calls += self.run.tally.end_reused()
        self._end()
        if self._undecided:
            branches.count({})
            branches.end(None)
        elif branches is not None:
            branches.drop()

    def end_elsewhere(self) -> None:
        """The forward is over here: others make it, and tell what it counted."""
        run, step = self.run, self._step
        run.forwards[-1][1].stop()
        run.tally.leave()
        self._step = None
        self._splitter.end()
        if step.known and not step.counted and step.step == step.steps - 1:
            run.let_go_of(step.branch)

    def fail(self) -> None:
        """The forward ended in an error. Nothing that was to be kept of it, or for it, is."""
        if self._step is not None:
            self._step = None
            self._splitter.end()
            self.run.tally.fail()
            self.run.let_go()

    def close(self) -> None:
        """Let go of what runs hold; the counters stay."""
        self._runs.close()

    def end_call(self) -> bool:
        """The forward is over. True: a sparse result was not finite, so the same forward has to run again.

        Ranks that share its calls agree on it.

        Raises:
            RuntimeError: for a non-finite result when the config is strict.
            Exception: that a call raised on one of several ranks.
        """
        branches = self._branches
        try:
            again = branches is not None and not branches.halves and branches.must_again(self.run)
            bad = self._bad_layers()
        except Exception:
            self.fail()
            raise
        if again or bad:
            if bad and not again:
                # What follows the first bad layer may only have inherited it: that layer goes dense alone at
                # first.
                self._force_dense(bad[:1] if self._reruns == 0 else bad)
                self._reruns += 1
            self.run.rewind(self._mark, self._step.branch)
            self.run.tally.again()
            self._calls, self._sparse_in_call = {}, False
            if branches is not None:
                branches.began_anew()
            return True
        if self._shared is not None:
            share_counts(self.run, *self._mark[:2], *self._shared)
        came = self.run.tally.end()
        if branches is not None:
            branches.count(came)
        self._end()
        return False

    def _bad_layers(self) -> list[int]:
        """Layers of the present forward whose result is not finite, on whichever of the ranks that make it together.

        Raises:
            Exception: that a call raised on one of several ranks.
        """
        ranks = self._ranks
        if self._branches is not None and self._branches.halves:
            ranks = self._branches.everyone(ranks)
        elif self._shared is None:
            return self.run.non_finite_layers() if self._sparse_in_call else []
        return agreed_layers(ranks, self.run.non_finite_flags(ranks.device), self._held_back)

    def _end(self) -> None:
        run, step = self.run, self._step
        run.forwards[-1][1].stop()
        self._step = None
        self._splitter.end()
        self._runs.reports.end_call()
        if step.known and not step.counted and step.step == step.steps - 1:
            run.let_go_of(step.branch)

    def attend(
        self,
        layer: int,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        dense: Callable[[], torch.Tensor],
        scale: float | None = None,
        mask: torch.Tensor | None = None,
        why_dense: str | None = None,
    ) -> torch.Tensor:
        """Attention of one layer.

        Args:
            layer: index into ``layers``.
            q, k, v: ``[B, S, H, D]`` after RoPE.
            dense: the original attention of this very call.
            scale: factor on the logits; ``1 / sqrt(D)`` by default.
            mask: as PyTorch's attention takes it. One that pads is honoured by leaving hidden keys out, any
                other by running dense.
            why_dense: a reason the caller knows for which only ``dense`` will do.

        Returns:
            ``[B, S, H, D]``.

        Raises:
            ValueError: when a method was asked for by name and the call is not one it can take.
        """
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return self.attend_inputs(AttentionInputs(layer, q, k, v, scale, mask), dense, why_dense)

    def attend_inputs(
        self, call: AttentionInputs, dense: Callable[[], torch.Tensor], why_dense: str | None = None
    ) -> torch.Tensor:
        """`attend`, of some of a layer's heads too, or for some of its queries: other ranks have the others, and make
        the same call. With shared tokens ``dense`` and what is returned are of this rank's queries.

        What it raises then comes at the end of the forward, on all ranks: until there they need what this one gives.
        """
        if self._step is None:
            return dense()
        halves = self._branches is not None and self._branches.halves
        if call.alone and not halves:
            return self._kept_or_attended(call, dense, why_dense)
        here, copies = call.q.shape[2], 1 if call.shared is None else call.shared.ranks.size
        self._shared = self._shared if call.alone else (here / call.heads.total(here), copies)
        try:
            return self._kept_or_attended(call, dense, why_dense)
        except Exception as error:
            self._held_back = self._held_back or error
            own = call.q if call.shared is None else call.shared.queries
            return call.q.new_zeros(*own.shape[:3], call.v.shape[-1])

    def note_exchange(self, sent: int, *watches: Stopwatch) -> None:
        """Count what a call sent to other ranks, in bytes, and how long that took."""
        if self._step is not None:
            self.run.exchanged.bytes += sent
            self.run.exchanged.watches += watches

    def note_sent(self, sent: int) -> None:
        """Count bytes that went to another rank beside an attention call."""
        self.run.exchanged.bytes += sent

    @property
    def takes_own(self) -> bool:
        """Whether block masks that the model brings itself decide the calls of the present forward."""
        return self._step is not None and self.run.method is not None and self.run.method.takes_own

    def heads_of(self, layer: int, ranks: Ranks, total: int) -> Heads:
        """Who has which heads of a layer in the present forward: dealt by what they cost in the step before."""
        dealt = None if self._step is None else self.run.deals.get(layer)
        if dealt is None or len(dealt) != ranks.size or sum(map(len, dealt)) != total:
            return Heads.even(ranks, total)
        return Heads(ranks, dealt)

    def _kept_or_attended(
        self, call: AttentionInputs, dense: Callable[[], torch.Tensor], why_dense: str | None
    ) -> torch.Tensor:
        run, layer, own = self.run, call.layer, self._splitter.own_tokens(call)
        if self._splitter.among_keys_alone(call) or (run.tally.came(layer) and not own):
            return dense()  # text's own attention, or an adapter's, beside the layer's
        run.tally.call(layer)
        # Keys of other tokens are no self-attention: an adapter's pictures, or what a model keeps itself.
        if run.reuse is None or not own or not call.alone:
            return self._attend(call, dense, why_dense)
        kept = run.reuse.attention(layer, call.q)
        if kept is not None:
            run.reused_calls += 1
            return kept
        out = self._attend(call, dense, why_dense)
        run.reuse.keep_attention(layer, out)
        return out

    def reusing(self, call: AttentionInputs, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What a step cache keeps of a layer's attention, or ``compute()``, which it may keep.

        Around what ranks exchange: nothing is sent for what is reused.
        """
        reuse = None if self._step is None else self.run.reuse
        if reuse is None:
            return compute()
        kept = reuse.attention(call.layer, call.q)
        if kept is not None:
            self.run.tally.call(call.layer)
            self.run.reused_calls += 1
            return kept
        out = compute()
        reuse.keep_attention(call.layer, out)
        return out

    def _attend(self, call: AttentionInputs, dense: Callable[[], torch.Tensor], why_dense: str | None) -> torch.Tensor:
        run, step, layer = self.run, self._step, call.layer
        self._show(call)
        if call.own is None and self._scheduled_dense(layer):
            run.count_dense(call, step.step)
            return dense()
        parts = why_dense or self._splitter.split(call, run, step.step)
        if isinstance(parts, str):
            run.fallbacks[parts] += 1
            run.count_dense(call, step.step)
            return dense()
        number = self._calls[layer] = self._calls.get(layer, 0) + 1
        out = self._sparse.attend(call, step, number, parts)
        if out is None:
            run.count_dense(call, step.step)
            return dense()
        self._sparse_in_call = True
        return out if call.shared is None else call.shared.cut(out)

    def _show(self, call: AttentionInputs) -> None:
        """Let watchers see a call that is in the order of its grid, without keys beside its queries."""
        layout, grid = self._splitter.layout, self.run.grid
        if not self.watchers or layout is None:
            return
        layer, q, k, v, scale = call[:5]
        if self._splitter.own_tokens(call) and q.shape[1] == grid.tokens and layout.in_order(k.shape[1]):
            if call.shared is not None:
                call.shared.whole("q", "k", "v")
            if q.shape[1] != k.shape[1]:
                at = layout.queries_at(k.shape[1]).to(k.device)
                k, v = k.index_select(1, at), v.index_select(1, at)
            for watch in self.watchers:
                watch(AttentionEvent(layer, q, k, v, scale, self._step, grid))

    def skip(self, layer: int, reason: str) -> None:
        """Count a call that ran as if nothing were attached, for this reason."""
        if self._step is not None:
            self.run.tally.call(layer)
            self.run.fallbacks[reason] += 1
            pairs = 1.0 if self.run.grid is None else float(self.run.grid.tokens) ** 2
            self.run.calls.append(Call(self._step.step, layer, pairs, None))

    def called(self, layer: int) -> bool:
        """Whether this layer has had a call in the present forward, sparse or not."""
        return self._step is not None and self.run.tally.came(layer) > 0

    def _scheduled_dense(self, layer: int) -> bool:
        asked = self.config.method == "dense" or self.layers[layer].depth < self.config.dense_layers
        return asked or self._step.dense

    def _force_dense(self, bad: list[int]) -> None:
        dtype = str(self.run.dtype).removeprefix("torch.")
        for layer in bad:
            what = f"non-finite result in {self.layers[layer].name} at step {self._step.step} in {dtype}"
            if self.config.strict:
                self._step = None
                raise RuntimeError(f"{what}: stopped, because strict was asked for")
            self.run.notes[f"{what}: that layer ran dense in this step"] = None
            self.run.dense_from.add((self._step.step, layer))


def _shape(grid: TokenGrid | None) -> tuple[int, int, int] | None:
    return None if grid is None else grid.shape
