"""The loop that calls a transformer: whose schedule it walks along, and where it stands.

Any number of pipelines may share a transformer, each with a scheduler of its own, and none of them need be the one that
was accelerated, or be held by anybody but its own caller. What is certain is who calls: the loop's own variables, its
timestep a view of its schedule. They are read from the frames of the callers; nothing is patched, and nothing of the
frames is kept. diffusers' loops, its modular blocks and the scripts of its docs all name the timestep ``t``.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

import torch

from dittools.clock import place_in, shares_memory

DEPTH = 60
FEW = 8
_NAMES = ("t", "timesteps", "scheduler")
_INNER = ("torch.", "dittools.", "accelerate.")
_MARK = "dittools follows this loop"
_OF_THE_FUNCTION = 0x1  # CO_OPTIMIZED: variables of a function, not of a module


@dataclass(frozen=True)
class Loop:
    """What is known of the loop that makes a call.

    Attributes:
        schedules: those that the call may belong to, likeliest first; one where ``step`` is known. ``[steps]``, or
            ``[steps, frames]`` with one timestep a frame.
        step, first, steps: index of the call in the schedule, first step that runs, one more than the last; None where
            they are not known.
        scheduler, owner: of the schedule, and the pipeline (or what stands for one) that holds it; None where unknown.
        life: dies with the call of the function that has the loop; None where no function has it.
    """

    schedules: tuple[torch.Tensor, ...] = ()
    step: int | None = None
    first: int | None = None
    steps: int | None = None
    scheduler: Any = None
    owner: Any = None
    life: weakref.ref | None = None


def find_loop(model: torch.nn.Module, timestep: Any, pipe: Any) -> Loop:
    """The loop that is calling ``model`` now.

    Args:
        model: the transformer.
        timestep: what it is given.
        pipe: whose scheduler is meant where no caller has one; None where there is none.
    """
    given, possible = [timestep], []
    life = owner = scheduler = None
    for frame in _callers():
        names = frame.f_locals
        if isinstance(names.get("t"), torch.Tensor):
            given.insert(0, names["t"])
        holders = list(_holders(names.values()))
        found = _in_sequence(given, names, holders)
        if found is None:
            found = next(filter(None, (_in_schedule(given, *holder) for holder in holders)), None)
        if found is not None:
            return _with_life(found, frame)
        mine = [holder for holder in holders if holder[1] is not None and _holds(holder[1], model)]
        listed = names.get("timesteps")
        if mine or (isinstance(listed, torch.Tensor) and listed.ndim == 1):
            life = life or _life_of(frame)
        possible += [listed] if isinstance(listed, torch.Tensor) and listed.ndim == 1 and listed.numel() else []
        possible += [one.timesteps for one, _ in holders]
        if holders and scheduler is None:
            scheduler, owner = holders[0]
        if mine:
            break
    known = _prepared(_attribute(pipe, "scheduler"))
    if known is not None:
        found = _in_schedule(given, known, pipe)
        if found is not None:
            return found
        if not any(map(_is_entry, given)):  # then the loop walks along something else
            possible.append(known.timesteps)
        scheduler, owner = (scheduler, owner) if scheduler is not None else (known, pipe)
    return Loop(tuple(_each_once(possible)), scheduler=scheduler, owner=owner, life=life)


def _callers() -> Iterator[FrameType]:
    """The frames of the callers that may have a loop, innermost first."""
    frame = sys._getframe(2)
    for _ in range(DEPTH):
        if frame is None:
            return
        if not frame.f_globals.get("__name__", "").startswith(_INNER) and _tells(frame.f_code):
            yield frame
        frame = frame.f_back


def _tells(code: CodeType) -> bool:
    return any(name in group for group in (code.co_varnames, code.co_names, code.co_freevars) for name in _NAMES)


def _holders(values: Any) -> Iterator[tuple[Any, Any]]:
    """Schedulers among these, with what holds them."""
    for value in _spread(values):
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict):
            continue
        held = _prepared(own.get("scheduler"))
        if held is not None:
            yield held, value
        elif _prepared(value) is not None:
            yield value, None


def _spread(values: Any) -> Iterator[Any]:
    """These, and what short lists among them hold."""
    for value in list(values):
        yield value
        if type(value) in (list, tuple) and len(value) <= FEW:
            yield from value


def _prepared(scheduler: Any) -> Any:
    """The scheduler, where it has a schedule that someone asked for."""
    own = getattr(scheduler, "__dict__", None)
    timesteps = own.get("timesteps") if isinstance(own, dict) else None
    if not isinstance(timesteps, torch.Tensor) or timesteps.ndim != 1 or not timesteps.numel():
        return None
    # Before the first `set_timesteps` it lists what the model was trained on.
    return None if own.get("num_inference_steps", 0) is None else scheduler


def _in_sequence(given: Sequence[Any], names: dict[str, Any], holders: Sequence[tuple[Any, Any]]) -> Loop | None:
    """The loop over one of the variables of a frame."""
    for t in given:
        if not isinstance(t, torch.Tensor) or t.ndim > 1:
            continue
        found = [
            (name == "timesteps", len(value), place, value)
            for name, value in list(names.items())
            if isinstance(value, torch.Tensor) and value.ndim == t.ndim + 1
            if (place := place_in(t, value)) is not None
        ]
        if not found:
            continue
        _, count, place, walked = max(found, key=lambda one: one[:2])
        scheduler, owner = holders[0] if holders else (None, None)
        for one, holder in holders:
            start = place_in(walked[0], one.timesteps)
            if start is not None:
                return Loop((one.timesteps,), start + place, start, start + count, one, holder)
        same = scheduler is not None and walked.ndim == 1 and len(walked) == len(scheduler.timesteps)
        return Loop((walked,), place, 0, count, scheduler if same else None, owner)
    return None


def _in_schedule(given: Sequence[Any], scheduler: Any, owner: Any) -> Loop | None:
    """The loop over a scheduler's own timesteps."""
    for t in (*given, _attribute(owner, "_current_timestep")):
        place = place_in(t, scheduler.timesteps)
        if place is not None:
            return Loop((scheduler.timesteps,), place, scheduler=scheduler, owner=owner)
    return None


def _is_entry(t: Any) -> bool:
    """Whether a timestep is one entry of some longer tensor."""
    return isinstance(t, torch.Tensor) and t.ndim == 0 and t.untyped_storage().nbytes() > t.element_size()


def _holds(owner: Any, model: torch.nn.Module) -> bool:
    return any(value is model for value in owner.__dict__.values())


def _attribute(owner: Any, name: str) -> Any:
    return None if owner is None else getattr(owner, name, None)


def _each_once(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for i, one in enumerate(tensors):
        if not any(shares_memory(one, other) for other in tensors[:i]):
            yield one


class _Life:
    """Held by a frame alone, so that it ends when its function returns, raises or is dropped."""


def _with_life(found: Loop, frame: FrameType) -> Loop:
    values = {name: getattr(found, name) for name in Loop.__dataclass_fields__}
    return Loop(**{**values, "life": _life_of(frame)})


def _life_of(frame: FrameType) -> weakref.ref | None:
    """What dies with the call of a function."""
    if not frame.f_code.co_flags & _OF_THE_FUNCTION:
        return None
    names = frame.f_locals
    mark = names.get(_MARK)
    if mark is None:
        # A name that no code can use; it stays with the frame in every version of Python.
        mark = names[_MARK] = _Life()
    return weakref.ref(mark)
