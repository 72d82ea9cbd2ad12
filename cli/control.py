"""Whether two timed runs can be compared: by steps that both do the same way, and that must take the same time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST_APART = 0.1
"""Share by which the same steps may differ in two runs; a speed-up beyond that is one of the machine."""
REPEATED = 2
"""Dense steps that are done again where the runs have none in common."""


class StepTimes:
    """Seconds of every step of a run, on the device that does it; no step waits for another to be read."""

    def __init__(self, device: Any):
        self._device, self._watches = device, []

    def around(self, on_step: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """The callback of a run that begins now, which tells `on_step` as well."""
        from dittools.stopwatch import Stopwatch

        self._watches = [Stopwatch(self._device)]

        def told(step: int, steps: int) -> None:
            self._watches[-1].stop()
            on_step(step, steps)
            self._watches.append(Stopwatch(self._device))

        return told

    def seconds(self) -> list[float]:
        """Of the steps that are done. Waits for the device."""
        return [watch.seconds for watch in self._watches[:-1]]


@dataclass(frozen=True)
class Control:
    """The same dense steps in two runs.

    Args:
        kind: "shared" where both runs have them anyhow, "repeated" where they were done again for this.
        steps: which, from 0.
        dense_seconds, seconds: in the dense run, and in the other one or the second time.
    """

    kind: str
    steps: tuple[int, ...]
    dense_seconds: float
    seconds: float

    @property
    def withheld(self) -> str | None:
        """Why no speed-up can be given, or None."""
        times = sorted((self.dense_seconds, self.seconds))
        if times[0] > 0 and times[1] <= (1 + MOST_APART) * times[0]:
            return None
        many = f"the {len(self.steps)} steps" if len(self.steps) > 1 else "the one step"
        what = "that both runs do dense" if self.kind == "shared" else "that the dense run did twice"
        took = f"{self.dense_seconds:.3g} s and {self.seconds:.3g} s"
        return f"{many} {what} took {took}, so the machine was not equally fast: run it again when it is quiet"

    def facts(self) -> dict[str, Any]:
        """As the record has it."""
        return {
            "kind": self.kind,
            "steps": list(self.steps),
            "dense_seconds": round(self.dense_seconds, 4),
            "seconds": round(self.seconds, 4),
        }


def shared_steps(record: dict[str, Any], steps: int) -> tuple[int, ...]:
    """Steps of a run that were computed whole and dense, from `Acceleration.record()`.

    steps: of the sampler; where the record counts others (a sampler of two calls a step), none is known.
    """
    cache = record["cache"]
    lanes = cache.get("branches", {}).values()
    reused = {*cache["reused_steps"], *cache.get("attention_reused_steps", ())}
    reused.update(step for lane in lanes for step in lane["reused_steps"])
    shares = record["sparsity"]["per_step"] if len(record["sparsity"]["per_step"]) == steps else ()
    return tuple(step for step, share in enumerate(shares) if share == 0 and step not in reused)


def control(dense: list[float], other: list[float], steps: tuple[int, ...], kind: str) -> Control:
    """The control of two runs by these steps; `dense` and `other` are the seconds of each one's steps."""
    return Control(kind, steps, sum(dense[step] for step in steps), sum(other[step] for step in steps))
