"""Guidance branches of one step made by groups of ranks at the same time, each with one branch, or half of the batch.

A pipeline that asks for its branches one after the other has the second asked for while the first is made elsewhere:
the call returns at once, with tensors that are filled once somebody reads them. A rank talks to one of the other group,
which has the same heads and tokens: it tells the plans that branches share, what a step cache decided, and in the end
the output and what was counted, so that every rank knows of the whole run.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from dittools.channel import Channel
from dittools.clock import StepInfo
from dittools.counts import Counting, Counts, add_forward, add_half
from dittools.methods.base import Plan, compact
from dittools.ranks import FailedElsewhere, Ranks
from dittools.run import CachedPlan, Run
from dittools.selection.packed import pack_bits, unpack_bits
from dittools.stopwatch import Stopwatch

if TYPE_CHECKING:
    from dittools.caches.state import Entry
    from dittools.progress import StepReports

_IN_TURN = "guidance branches were made in turn, not at once: the pipeline reads one before it asks for the next"


class Everyone(Ranks):
    """The ranks of both groups, where all of them have to agree.

    Args:
        mine: those of this rank's group.
        pair: this rank and its like in the other group.
    """

    def __init__(self, mine: Ranks, pair: Ranks):
        super().__init__(None, pair.device)
        self._mine, self._pair = mine, pair
        self.size, self.rank = mine.size * pair.size, pair.rank * mine.size + mine.rank

    def agree_max(self, numbers: Any) -> list[int]:
        return self._pair.agree_max(self._mine.agree_max(numbers))

    def agree_text(self, text: str | None) -> str | None:
        return self._pair.agree_text(self._mine.agree_text(text))


class Elsewhere:
    """A forward that the other group makes.

    Args:
        branches: who waits for it.
        run, step, part: what it is of.
        reports: of its run.
    """

    def __init__(self, branches: Branches, run: Run, step: StepInfo, part: int, reports: StepReports):
        self.run, self.step, self.part = run, step, part
        self._branches, self._reports = branches, reports
        self.verdict: Entry | None = None  # of the step cache, where it was decided on the way
        self.answer: tuple[Counts, Any] | None = None  # what was counted, and the output
        self._then: list[Callable[[Any], None]] = []
        self.done = False

    def then(self, told: Callable[[Any], None]) -> None:
        """Have ``told`` called with the output, now or once it is there."""
        if self.done:
            told(self.answer[1])
        else:
            self._then.append(told)

    def wait(self, read: bool = True) -> Any:
        """The output. Waits for it, and for those asked for before.

        Args:
            read: whether the pipeline asks for it.
        """
        if not self.done:
            self._branches.settle(self, read)
        return self.answer[1]

    def finish(self) -> None:
        """It is here: count it, and tell who waits."""
        counts, output = self.answer
        add_forward(self.run, counts)
        self.run.tally.end_elsewhere(self.part, counts.came)
        self.done = True
        for told in self._then:
            told(output)
        self._then.clear()
        self._reports.end_call()


class Branches:
    """Who makes which branch, and what both groups tell each other. One for all transformers of a pipeline.

    Args:
        pair: this rank and its like in the other group; the group of rank 0 makes the first branch of a step.
        groups: as `Channel` has them.

    Attributes:
        halves: whether both groups make every forward, each with half of its batch.
        here: whether this group makes the present forward, or some of it.
        elsewhere: the present forward, where the other group makes it.
    """

    def __init__(self, pair: Ranks, groups: tuple[Any, Any]):
        self.pair, self.halves, self.here = pair, False, True
        self.elsewhere: Elsewhere | None = None
        self._channel = Channel(groups, pair.rank, pair.device)
        self._coming: deque[Elsewhere] = deque()
        self._run: Callable[[], Run | None] = lambda: None
        self._owners: dict[str, int] = {}  # of each branch of the run, the group that makes it
        self._calls: list[str] = []  # branches of the present step, in their order
        self._step, self._read = -1, False  # the step, and whether one of it was read before the next was asked for
        self._counting: Counting | None = None
        self._counts: Counts | None = None
        self._making = False  # whether a forward is under way here
        self._again = False  # whether what it builds upon was made again
        self._other_failed = False

    def everyone(self, mine: Ranks) -> Ranks:
        """The ranks of both groups, this one's being ``mine``."""
        return Everyone(mine, self.pair)

    # A forward

    def begin(self, run: Run, step: StepInfo, part: int, reports: StepReports) -> bool:
        """A forward starts. Whether this group makes it, or some of it."""
        if run is not self._run():
            self._run, self._owners, self._step, self._other_failed = weakref.ref(run), {}, -1, False
        if step.step != self._step:
            self._step, self._calls, self._read = step.step, [], False
            self._channel.arrived()
        self._calls.append(step.branch)
        run.shared = self
        owner = self._owners.setdefault(step.branch, len(self._owners) % self.pair.size)
        self.here, self.elsewhere = self.halves or owner == self.pair.rank, None
        self._making, self._again = self.here, False
        self._counting = Counting(run) if self.here else None
        if self.here:
            if self._read:
                run.notes[_IN_TURN] = None
        else:
            self.elsewhere = Elsewhere(self, run, step, part, reports)
            self._coming.append(self.elsewhere)
        return self.here

    def count(self, came: dict[int, int]) -> None:
        """The forward was made here: note what it counted. Of halves, both get to know that of the whole."""
        self._counts = self._counting.end(came)
        run = self._run()
        if self.halves:
            run.exchanged.bytes += self._channel.send("half", self._counts)
            add_half(run, self._counting.mark, self._received(run)[1])
            self._channel.arrived()

    def end(self, output: Any) -> None:
        """Send what was made here, and wait for the forwards before it."""
        if self._counts is not None and not self.halves:
            self._run().exchanged.bytes += self._channel.send("end", (self._counts, output))
        self._counts, self._making = None, False
        self.settle()

    def fail(self, error: Exception) -> None:
        """The forward that was to be made here ended in an error: the others are not to wait for it."""
        waited, self._making, self._counts = self._making, False, None
        if self.halves or not waited:
            return
        try:
            while self._coming:
                self._hear_out(self._coming[0])
                self._coming.popleft()
        except FailedElsewhere:
            return
        if not self._other_failed:
            self._channel.send("failed", f"rank {torch.distributed.get_rank()}: {error}")

    def drop(self) -> None:
        """The present forward needs nobody: both groups made it up from what a cache holds."""
        if self.elsewhere is not None:
            self._coming.remove(self.elsewhere)
        if self._counting is not None:
            self._counting.cancel()
        self.elsewhere, self._counting, self._making = None, None, False

    def settle(self, last: Elsewhere | None = None, read: bool = False) -> None:
        """Wait for the forwards that others make, up to ``last``. ``read``: the pipeline asked for its output."""
        self._read = self._read or read
        while self._coming and (last is None or not last.done):
            self._hear_out(self._coming[0])
            self._coming.popleft().finish()

    # What shares a step

    def began_anew(self) -> None:
        """The forward is made again, after a non-finite result."""
        if not self.halves:
            self._channel.send("again", (self._step, self._calls[-1]))

    def must_again(self, run: Run) -> bool:
        """Whether the forward has to be made again, since one before it in the step was. Waits for that."""
        for one in self._coming:
            self._hear_out(one)
            run.dense_from |= one.answer[0].dense_from
        again, self._again = self._again, False
        return again

    def tell_verdict(self, entry: Entry) -> None:
        """What a step cache decided in the forward that is made here."""
        if not self.halves:
            self._channel.send("verdict", entry)

    def hear_verdict(self) -> Entry | None:
        """What it decided in the present forward, which is made elsewhere; None where it decided nothing."""
        while self.elsewhere.verdict is None and self.elsewhere.answer is None:
            self._receive()
        return self.elsewhere.verdict

    def tell_plan(self, place: tuple, kept: CachedPlan, plan: Plan) -> None:
        """A plan that the branches of a step share."""
        if self.halves:
            return
        said = (plan.order, plan.mask, plan.notes, plan.pack is not None, plan.keys, plan.key_order, plan.rows)
        shape, dtype, _, heads = kept.shape
        self._run().exchanged.bytes += self._channel.send(
            "plan", (place, kept.step, kept.branch, (shape, dtype, heads), said, (kept.density, kept.by_kind))
        )

    def await_plan(self, place: tuple, step: int) -> None:
        """Wait until the plan of a branch that is made elsewhere is among those of the run, where there will be one."""
        for one in self._coming:
            while one.answer is None:
                kept = one.run.plans.get(place)
                if kept is not None and kept.step == step:
                    return
                self._receive()

    @property
    def before(self) -> Elsewhere | None:
        """The latest forward before the present one that others still make."""
        waited = [one for one in self._coming if one is not self.elsewhere]
        return waited[-1] if waited else None

    @property
    def leader(self) -> str | None:
        """The branch of the step whose plans the present one uses, where another group makes it."""
        first = self._calls[0]
        return None if self.halves or self._owners[first] == self.pair.rank else first

    def notes(self, run: Run) -> list[str]:
        """What a user should know of how a run was shared."""
        alone = [] if self.halves else run.tally.alone()
        if not alone:
            return []
        return [
            f"guidance had one branch in {len(alone)} of {run.steps} steps: one group of ranks waited for the other"
        ]

    # Messages

    def _hear_out(self, one: Elsewhere) -> None:
        while one.answer is None:
            self._receive()

    def _received(self, run: Run) -> tuple[str, Any]:
        watch = Stopwatch(self.pair.device)
        found = self._channel.receive()
        watch.stop()
        run.exchanged.watches.append(watch)
        return found

    def _receive(self) -> None:
        one = next(one for one in self._coming if one.answer is None)
        kind, said = self._received(one.run)
        if kind == "plan":
            place, *rest = said
            one.run.plans[place] = _kept(rest, self.pair.device, one.run.layers)
        elif kind == "again":
            for place in [key for key, held in one.run.plans.items() if (held.step, held.branch) == said]:
                del one.run.plans[place]
            self._again = self._making
        elif kind == "verdict":
            one.verdict = said
        elif kind == "end":
            one.answer = said
        else:
            self._coming.clear()
            self._other_failed = True
            raise FailedElsewhere(said)


def _kept(said: list, device: torch.device, layers: int) -> CachedPlan:
    """A plan that was told, as it is kept."""
    step, branch, (shape, dtype, heads), fields, (density, by_kind) = said
    plan = _plan(fields)
    vars(plan)["share"] = density
    return CachedPlan(step, branch, (shape, dtype, device, heads), compact(plan, shape, layers), density, by_kind)


def _plan(fields: tuple) -> Plan:
    order, mask, *rest = fields
    notes, packs, keys, key_order, rows = rest
    return Plan(order, mask, {}, notes, _packing(order, mask, rest) if packs else None, keys, key_order, rows)


def _packing(order: torch.Tensor | None, mask: Any, rest: list) -> Callable[[], Callable[[], Plan]]:
    """As `Plan.pack`: the mask in bits, and all else as it is."""

    def pack() -> Callable[[], Plan]:
        return partial(_unpacked, order, (type(mask), pack_bits(mask.keep), mask.query, mask.key), rest)

    return pack


def _unpacked(order: torch.Tensor | None, packed: tuple, rest: list) -> Plan:
    kind, bits, query, key = packed
    return _plan((order, kind(unpack_bits(bits, key.count), query, key), *rest))
