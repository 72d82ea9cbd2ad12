"""Step masks known before sampling: fixed intervals, and named ones that were published or calibrated."""

from __future__ import annotations

from dittools.caches.base import Trajectory
from dittools.profiles import caches as profiles


def every(steps: int, interval: int, start: int) -> list[bool]:
    """True for each step that lies a multiple of ``interval`` from ``start``, on either side of it."""
    return [(step - start) % interval == 0 for step in range(steps)]


def named(name: str, run: Trajectory) -> list[bool]:
    """A mask by its name, or from a profile written by `dittools calibrate --cache`.

    Raises:
        ValueError: when there is none for this number of steps, or the profile is of another model.
    """
    if name.endswith(".json"):
        profile = profiles.read(name)
        profiles.check_model(profile, run.model, name)
        found = profile.get("masks", {}).get(str(run.steps))
        if found is None:
            known = ", ".join(profile.get("masks", {})) or "none"
            raise ValueError(
                f"{name} has no mask for {run.steps} steps (it has {known}): calibrate with --steps {run.steps}"
            )
        text = found["mask"]
    else:
        table = profiles.builtin("masks")["masks"]
        if name not in table:
            raise ValueError(f"unknown mask {name!r}: use {', '.join(table)} or a profile's JSON file")
        text = table[name].get(str(run.steps))
        if text is None:
            raise ValueError(
                f"mask {name} is published for {', '.join(table[name])} steps, and this run has {run.steps}: "
                "use an interval, or dittools calibrate --cache"
            )
    return [letter == "1" for letter in text]
