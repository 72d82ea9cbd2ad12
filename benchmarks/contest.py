"""Contenders of one row: each is tried, judged, and only then timed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dittools.kernels.supervise import At, Broken
from dittools.kernels.timing import measure

Judge = Callable[[Callable[[], object]], None]


class Contest:
    """Collects the calls that are right, and says of the others what is wrong with them.

    Args:
        job: its "without" names what brought an earlier process down.
        at: told of everything that is about to be tried.

    Attributes:
        calls: what may be timed, by name.
        wrong: what gave a wrong result, failed or hung, and how.
        not_run: what is not there or does not take this case, and why.
    """

    def __init__(self, job: dict[str, Any], at: At):
        self._without = job.get("without", {})
        self._at = at
        self.calls: dict[str, Callable[[], object]] = {}
        self.peers: set[str] = set()  # of them, other people's: timed in bursts only
        self.wrong: dict[str, str] = {}
        self.not_run: dict[str, str] = {}

    def enter(
        self,
        name: str,
        make: Callable[[], Callable[[], object]],
        judge: Judge,
        patience: float | None = None,
        peer: bool = False,
    ) -> None:
        """Try one contender.

        Args:
            make: gives the call, which may be slow: a plan, a compilation.
            judge: runs the call and raises where its result is wrong.
            patience: seconds until silence means a hang.
            peer: other people's: what ``make`` raises as ValueError says that this case is not for it.
        """
        if name in self._without:
            self.wrong[name] = self._without[name]
            return
        self._at(name, patience)
        try:
            try:
                call = make()
            except ValueError as error:
                if not peer:
                    raise
                self.not_run[name] = line(error)
                return
            judge(call)
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
        except Exception as error:
            if breaks_the_card(error):
                raise Broken(line(error)) from error
            self.wrong[name] = line(error)
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
            return
        self.calls[name] = call
        if peer:
            self.peers.add(name)

    def time(self, device: torch.device, job: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Time all that is right, as the job says: "seconds", "burst" and "sustained"."""
        patience = 30 + 2 * job["seconds"]
        times = measure(
            self.calls, device, seconds=job["seconds"], bursts=job["burst"], sustain=job["sustained"],
            only_bursts=self.peers,
            tell=lambda name: self._at(name, patience),
        )  # fmt: skip
        self._at("", 60)
        return times


def line(error: BaseException) -> str:
    """An error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def breaks_the_card(error: Exception) -> bool:
    """Whether an error leaves a CUDA context behind in which nothing works any more."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    fatal = getattr(torch, "AcceleratorError", None)
    return (fatal is not None and isinstance(error, fatal)) or "CUDA error" in str(error)
