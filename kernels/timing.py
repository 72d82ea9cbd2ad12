"""How long calls take, in turn with one another: in bursts, and back to back. `alone` times them one after the other.

*Burst*: one call at a time with a pause before each, so that clocks stay high, queued behind a little other work, so
that its launch is not in it; the median. *Sustained*: each call back
to back for seconds, in two rounds, the second in reverse; the mean. A card under load lowers its clocks, and not
equally for every kernel: both figures are true.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch

Calls = dict[str, Callable[[], object]]
Tell = Callable[[str], None]
PAUSE = 0.03  # seconds before each call of a burst
FEWEST, MOST = 3, 30
# Work in front of a call, while which the host runs ahead: what is timed is the device and not the launch, as inside a
# model. It also leaves nothing of the inputs in L2. About 2 ms on an H100.
RUN_UP_BYTES, RUN_UPS = 256 << 20, 12


def once(call: Callable[[], object], device: torch.device, run_up: torch.Tensor | None = None) -> float:
    """Milliseconds of one call; waits for it."""
    if device.type != "cuda":
        begun = time.perf_counter()
        call()
        return (time.perf_counter() - begun) * 1000
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if run_up is not None:
        for _ in range(RUN_UPS):
            run_up.add_(1)
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def alone(
    names: Iterable[str],
    call: Callable[[str], object],
    device: torch.device,
    count: int,
    *,
    around: Callable[[str], AbstractContextManager],
    unable: tuple[type[Exception], ...] = (),
) -> dict[str, float]:
    """Median milliseconds of a call under each name, where one has to be done before the next can be chosen.

    Args:
        names: of what makes the call, for example dense kernels.
        call: makes it by that name.
        count: calls that are timed, after one that is not.
        around: chooses a name; all of its calls are made inside of what this gives.
        unable: errors that say that a name cannot make this call: it is left out. Any other is raised.
    """
    found = {}
    for name in names:
        try:
            with around(name):
                times = [once(lambda name=name: call(name), device) for _ in range(1 + count)]
        except unable:
            continue
        found[name] = statistics.median(times[1:])
    return found


def burst(
    calls: Calls, device: torch.device, seconds: float, tell: Tell = lambda name: None
) -> dict[str, dict[str, Any]]:
    """Median, least and most milliseconds of each call, and how many there were.

    Args:
        calls: already run once, so that nothing is compiled here.
        seconds: what all of it may take; `FEWEST` rounds run all the same.
        tell: told of each call before it is made.
    """
    run_up = None
    if device.type == "cuda":
        run_up = torch.zeros(RUN_UP_BYTES, dtype=torch.uint8, device=device)
    found: dict[str, list[float]] = {name: [] for name in calls}
    begun, turn = time.monotonic(), 0
    while turn < FEWEST or (turn < MOST and time.monotonic() - begun < seconds):
        names = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name in names:
            tell(name)
            if device.type == "cuda":
                torch.cuda.synchronize()
                time.sleep(PAUSE)
            found[name].append(once(calls[name], device, run_up))
        turn += 1
    return {
        name: {"ms": statistics.median(ms), "least": min(ms), "most": max(ms), "calls": len(ms)}
        for name, ms in found.items()
    }


def sustained(
    calls: Calls, device: torch.device, seconds: float, ms: dict[str, float], tell: Tell = lambda name: None
) -> dict[str, dict[str, Any]]:
    """Mean milliseconds of each call back to back, of its faster and its slower round, and how many there were.

    Args:
        seconds: of each call, in two rounds.
        ms: about how long each takes.
    """
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in calls}
    for names in (list(calls), list(calls)[::-1]):
        for name in names:
            tell(name)
            turns = max(1, round(500 * seconds / ms[name]))
            found[name].append((_back_to_back(calls[name], turns, device), turns))
    return {
        name: {
            "ms": sum(total for total, _ in rounds) / sum(turns for _, turns in rounds),
            "least": min(total / turns for total, turns in rounds),
            "most": max(total / turns for total, turns in rounds),
            "calls": sum(turns for _, turns in rounds),
        }
        for name, rounds in found.items()
    }


def _back_to_back(call: Callable[[], object], turns: int, device: torch.device) -> float:
    def all_of_them() -> None:
        for _ in range(turns):
            call()

    return once(all_of_them, device)


def measure(
    calls: Calls,
    device: torch.device,
    *,
    seconds: float,
    bursts: bool,
    sustain: bool,
    only_bursts: Collection[str] = (),
    tell: Tell = lambda name: None,
) -> dict[str, dict[str, Any]]:
    """Each call's ``burst`` and ``sustained`` figures, as asked for, within about ``seconds``.

    Args:
        calls, tell: as for `burst`.
        only_bursts: calls that are not timed back to back.
    """
    share = seconds / 3 if sustain else seconds
    found: dict[str, dict[str, Any]] = {name: {} for name in calls}
    first = burst(calls, device, share if bursts else 0.0, tell)
    if bursts:
        for name, figures in first.items():
            found[name]["burst"] = figures
    lasting = {name: call for name, call in calls.items() if name not in only_bursts}
    if sustain and lasting:
        ms = {name: figures["ms"] for name, figures in first.items()}
        each = (seconds - share if bursts else seconds) / len(lasting)
        for name, figures in sustained(lasting, device, each, ms, tell).items():
            found[name]["sustained"] = figures
    return {name: figures for name, figures in found.items() if figures}
