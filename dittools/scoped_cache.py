"""What is made once and found again, by how long it is kept. Every cache of methods and plans has one of these scopes.

- process: functions with `process_cached` keep what a grid and options decide, such as static masks, on the CPU. Newer
  results push older ones out, and `clear_process_caches` forgets all.
- profile: `AttentionCall.profile_cache` keeps what a profile decides alone, small and on the CPU. It goes with
  the profile.
- run: `AttentionCall.run_cache` keeps what all calls of a run on one grid share. It goes with the run.
- branch: `AttentionCall.branch_state` holds what one layer and branch carry from step to step. It goes with the last
  step of the branch, and is emptied where a forward is run again.
- plan: `Run.plans` holds plans that several steps or branches use, until `refresh` wants new ones.

A method returns a plan and names the scope of what it keeps; it holds nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any, TypeVar

Made = TypeVar("Made")


class ScopedCache(dict[Hashable, Any]):
    """A dictionary of what was made within one scope; whoever owns the scope clears it."""

    def get_or_make(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What is kept under this key, or else ``make()``, which is kept from now on."""
        if key not in self:
            self[key] = make()
        return self[key]


_process: list[Any] = []  # every function that keeps what it gave


def process_cached(limit: int) -> Callable[[Callable[..., Made]], Callable[..., Made]]:
    """A decorator: keep what a function gave for its latest ``limit`` arguments, for all runs of this process."""

    def keeping(make: Callable[..., Made]) -> Callable[..., Made]:
        kept = lru_cache(maxsize=limit)(make)
        _process.append(kept)
        return kept

    return keeping


def clear_process_caches() -> None:
    """Forget what `process_cached` functions gave."""
    for kept in _process:
        kept.cache_clear()
