"""Step masks known before sampling: fixed intervals, and named ones that were published or calibrated."""

from __future__ import annotations

from dittools.caches.state import Model, Trajectory
from dittools.profiles import caches as profiles


def every(steps: int, interval: int, start: int) -> list[bool]:
    """True for each step that lies a multiple of ``interval`` from ``start``, on either side of it."""
    return [(step - start) % interval == 0 for step in range(steps)]


def named(name: str, run: Trajectory) -> list[bool]:
    """A mask by its name, or from a profile written by `dittools calibrate --cache`.

    Raises:
        ValueError: when there is none for this number of steps, or the profile is of another model.
    """
    check_model(name, run.model)
    return [letter == "1" for letter in _of_steps(name, run.steps)]


def check(name: str, steps: int | None) -> None:
    """What of `named` is known before there is a model; with no ``steps``, that there is such a mask at all."""
    if steps is None:
        _by_steps(name)
    else:
        _of_steps(name, steps)


def check_model(name: str, model: Model) -> None:
    """Raises ValueError where a mask is from the profile of another model."""
    if name.endswith(".json"):
        profiles.check_model(profiles.read_one(name), model, name)


def _of_steps(name: str, steps: int) -> str:
    found = _by_steps(name)
    if str(steps) in found:
        return found[str(steps)]
    known = ", ".join(found) or "none"
    if name.endswith(".json"):
        raise ValueError(f"{name} has no mask for {steps} steps (it has {known}): calibrate with --steps {steps}")
    raise ValueError(
        f"mask {name} is published for {known} steps, and this run has {steps}: "
        "use an interval, or dittools calibrate --cache"
    )


def _by_steps(name: str) -> dict[str, str]:
    """The masks of a name or a file: number of steps -> a digit a step."""
    if name.endswith(".json"):
        return {steps: entry["mask"] for steps, entry in profiles.read_one(name).get("masks", {}).items()}
    table = profiles.builtin("masks")["masks"]
    if name not in table:
        raise ValueError(f"unknown mask {name!r}: use {', '.join(table)} or a profile's JSON file")
    return table[name]
