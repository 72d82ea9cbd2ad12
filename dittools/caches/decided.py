"""A step cache whose decisions come from a file: what another run computed is computed, what it reused is reused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dittools.caches.base import OutputCache
from dittools.caches.output_reuse import OutputReuse
from dittools.caches.state import BranchState, Trajectory

COMPUTED, REUSED, ABSENT = "C", "r", "."
"""Letters of a step in a decided schedule."""


@dataclass(frozen=True)
class Decided(OutputCache):
    """Decides nothing: see `of`."""

    name: ClassVar[str] = "decided"
    summary: ClassVar[str] = "the steps that another run computed"
    calls: ClassVar[Mapping[tuple[int, str], str]] = {}  # by transformer and branch, a letter a step

    @classmethod
    def of(cls, name: str, decided: Mapping[str, Any]) -> Decided:
        """The decisions of cache ``name``, as `dittools.plans.manifest.SHAPE` has them."""
        made = cls(reuse=decided["reuse"], taylor_order=decided["taylor_order"])
        object.__setattr__(made, "name", name)
        object.__setattr__(made, "calls", {(one["part"], one["branch"]): one["steps"] for one in decided["calls"]})
        return made

    def begin_run(self, run: Trajectory) -> DecidedReuse:
        return DecidedReuse(self, run)

    def kept(self, steps: int, begins: Sequence[int]) -> list[bool]:
        return [False] * steps  # what had to be computed was

    def mask(self, run: Trajectory) -> None:
        return None

    def never(self) -> bool:
        return not any(REUSED in steps for steps in self.calls.values())


class DecidedReuse(OutputReuse):
    """`Decided` at work: each call of each branch as it was. Where nothing is there to reuse, it is computed."""

    cache: Decided

    def _decide_call(self, state: BranchState, latents: torch.Tensor, why: str | None) -> bool:
        (part, branch), call, _ = self._now
        steps = self.cache.calls.get((part, branch), "")
        reused = call.step < len(steps) and steps[call.step] == REUSED
        if reused and why is not None:
            self.notes[f"step {call.step} of branch {branch} was reused in the exported run and is computed: {why}"] = (
                None
            )
        return self._log(state, not reused or why is not None, why if reused else "computed in the exported run", None)

    def _gained(self, reused: int) -> Iterator[str]:
        return iter(())
