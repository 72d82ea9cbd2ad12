"""The attention calls that a run should make, held against those that came."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

MOST_NAMED = 3


class Tally:
    """Counts one run: every forward of a transformer, and the self-attention calls that came of it.

    Args:
        layers: of each transformer, its self-attention layers by number.
    """

    def __init__(self, layers: Sequence[Sequence[int]]):
        self._layers = layers
        self._forwards: dict[int, Counter[int]] = defaultdict(Counter)  # by step, of each transformer
        self._beside: Counter[int] = Counter()  # of each transformer, forwards whose step is not known
        self._most: Counter[int] = Counter()  # calls of a layer in one forward
        self._missing: Counter[int] = Counter()  # forwards in which a layer did not come
        self._came: Counter[int] = Counter()  # calls in the present forward
        self._now: tuple[int, int] | None = None  # step and transformer of the present forward
        self.unknown: dict[float, None] = {}  # timesteps whose step is not known
        self.unknown_calls = 0
        self.failed: Counter[int] = Counter()  # by step, forwards that ended in an error

    def begin(self, step: int, part: int, known: bool = True) -> None:
        """A forward of a transformer starts. ``known``: whether the step is its own."""
        if self._now is not None:
            self.failed[self._now[0]] += 1
        (self._forwards[step] if known else self._beside)[part] += 1
        self._now = step, part
        self._came.clear()

    def note_unknown(self, timestep: float) -> None:
        """The present forward is of a timestep that is in no step of the schedule."""
        self.unknown_calls += 1
        self.unknown[timestep] = None

    def fail(self) -> None:
        """The forward ended in an error."""
        if self._now is not None:
            self.failed[self._now[0]] += 1
        self._now = None

    def came(self, layer: int) -> int:
        """How many calls of a layer came in this forward."""
        return self._came[layer]

    def call(self, layer: int) -> None:
        """A self-attention call came."""
        self._came[layer] += 1

    def again(self) -> None:
        """The forward is run once more."""
        self._came.clear()

    def end(self) -> dict[int, int]:
        """The forward is over, and was computed; the attention calls of each layer."""
        for layer in self._layers[self._now[1]]:
            self._most[layer] = max(self._most[layer], self._came[layer])
            self._missing[layer] += not self._came[layer]
        self._now = None
        return dict(self._came)

    def alone(self) -> list[int]:
        """Steps in which one forward ran."""
        return [step for step, forwards in self._forwards.items() if sum(forwards.values()) == 1]

    def leave(self) -> dict[int, int]:
        """The forward is over here, and is counted by who made it; the attention calls of each layer that came."""
        self._now = None
        return dict(self._came)

    def end_elsewhere(self, part: int, came: Mapping[int, int]) -> None:
        """A forward of a transformer is over that was made elsewhere; empty where its output was reused.

        Args:
            came: attention calls of each layer.
        """
        for layer in self._layers[part] if came else ():
            self._most[layer] = max(self._most[layer], came.get(layer, 0))
            self._missing[layer] += not came.get(layer, 0)

    def end_reused(self) -> int:
        """The forward is over, and its output was reused: how many calls that saved."""
        saved = sum(max(self._each(layer) - self._came[layer], 0) for layer in self._layers[self._now[1]])
        self._now = None
        return saved

    def expected(self, first: int, steps: int) -> int:
        """Calls of all layers, branches and steps, those that have not run counted as the last that did."""
        if not self._forwards:
            return 0
        there = sum(map(self._of, (*self._forwards.values(), self._beside)))
        last = self._forwards[max(self._forwards)]
        return there + len(self.not_run(first, steps)) * self._of(last)

    def not_run(self, first: int, steps: int) -> list[int]:
        """Steps in which no transformer was called."""
        return [step for step in range(first, steps) if step not in self._forwards]

    def notes(self, names: Sequence[str], first: int, steps: int, over: bool) -> list[str]:
        """What is missing, and why where that is known.

        Args:
            names: of the layers.
            over: whether nothing can follow: the caller has returned.
        """
        notes, missing = [], {layer: count for layer, count in self._missing.items() if count}
        if missing:
            some = ", ".join(names[layer] for layer in list(missing)[:MOST_NAMED])
            more = f" and {len(missing) - MOST_NAMED} more" if len(missing) > MOST_NAMED else ""
            notes.append(
                f"{sum(missing.values())} attention calls never came, of {some}{more}: the layer runs without "
                "dittools (a processor set in its place, or a block that was left out)"
            )
        for step, count in self.failed.items():
            notes.append(f"{count} forwards of step {step} ended in an error: what they had left is missing")
        left = self.not_run(first, steps)
        if left and self._forwards:
            how = "the run ended before them" if over else "the run was broken off, or is still under way"
            notes.append(f"{len(left)} of {steps - first} steps did not run ({_ranges(left)}): {how}")
        if self.unknown_calls:
            some = ", ".join(f"{t:g}" for t in list(self.unknown)[:MOST_NAMED])
            notes.append(
                f"{self.unknown_calls} transformer calls at timesteps that are in no step of the schedule ({some}): "
                "their step is not known, so they ran dense and nothing was reused"
            )
        return notes

    def _each(self, layer: int) -> int:
        return max(self._most[layer], 1)

    def _of(self, forwards: Counter[int]) -> int:
        return sum(count * sum(map(self._each, self._layers[part])) for part, count in forwards.items())


def _ranges(steps: Sequence[int]) -> str:
    """Ascending numbers as "2, 5 to 9"."""
    groups: list[list[int]] = []
    for step in steps:
        if groups and groups[-1][-1] == step - 1:
            groups[-1].append(step)
        else:
            groups.append([step])
    return ", ".join(str(g[0]) if len(g) == 1 else f"{g[0]} to {g[-1]}" for g in groups)
