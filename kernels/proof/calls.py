"""Of the jobs of a proof: which kinds of calls one makes, and what its times say."""

from __future__ import annotations

from typing import Any


def kinds_of_calls(job: dict[str, Any], **kinds: Any) -> list[Any]:
    """What each kind of call is made with: of all of them, or of those that the job names in "calls"."""
    return [kinds[name] for name in job.get("calls", kinds)]


def speedup(times: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The "speedup" of the first of two kernels over the second; nothing where only one was timed."""
    found = [each["ms"] for each in times.values()]
    return {"speedup": found[1] / found[0]} if len(found) == 2 else {}
