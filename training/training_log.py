"""Progress of a training run: a clock that survives restarts, and losses as lines of JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path


class Progress:
    """Share of a time budget used so far, counted over all sessions of a stage."""

    def __init__(self, minutes: float, used_seconds: float = 0.0):
        self.budget, self.before, self.started = minutes * 60, used_seconds, time.monotonic()

    @property
    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    @property
    def share(self) -> float:
        return min(self.seconds / self.budget, 1.0)


class Log:
    """Appends records to ``<work>/log.jsonl`` and prints them; a quiet one does nothing."""

    def __init__(self, work: Path, quiet: bool = False):
        self.path, self.quiet = work / "log.jsonl", quiet

    def __call__(self, **record: object) -> None:
        if self.quiet:
            return
        line = json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in record.items()})
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def rate(share: float, step: int, warm_up: int, decay_from: float, floor: float = 0.0) -> float:
    """Factor on the learning rate: warm-up in steps, constant, linear decay over the end of the budget."""
    ramp = min(1.0, (step + 1) / warm_up)
    fall = 1.0 if share < decay_from else max(floor, 1 - (1 - floor) * (share - decay_from) / (1 - decay_from))
    return ramp * fall
