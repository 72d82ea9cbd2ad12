"""The loop that calls a transformer: whose schedule it walks along, and where it stands.

Any number of pipelines may share a transformer, each with a scheduler of its own, and none of them need be the one that
was accelerated, or be held by anybody but its own caller. What is certain is who calls: the loop's own variables, its
timestep a view of its schedule. They are read from the frames of the callers; nothing is patched, and nothing of the
frames is kept. diffusers' loops, its modular blocks and the scripts of its docs all name the timestep ``t``.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import CodeType, FrameType
from typing import Any

import torch

from dittools.timesteps import place_in, shares_memory

DEPTH = 60
FEW = 8
_NAMES = ("t", "timesteps", "scheduler")
_INNER = ("torch.", "dittools.", "accelerate.")
_MARK = "dittools follows this loop"
_OF_THE_FUNCTION = 0x1  # CO_OPTIMIZED: variables of a function, not of a module
_FRAME_AND_HERE = 3  # references to a frame's copy of its variables: its own, ours, and that of who counts them


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
    callers, inner = _callers(), []
    for frame in callers:
        names = _variables(frame)
        if isinstance(names.get("t"), torch.Tensor):
            given.insert(0, names["t"])
        holders = list(_holders(names.values()))
        found = _in_sequence(given, names, holders)
        if found is None:
            found = next(filter(None, (_in_schedule(given, *holder) for holder in holders)), None)
        if found is not None:
            own = None if _has(found, names) else _that_stands(found, inner)
            return replace(found, life=_life_of(own or _that_walks(found, frame, names, callers)))
        inner.append((frame, names))
        mine = [holder for holder in holders if any(value is model for value in _own(holder[1]).values())]
        listed = _listed(names)
        if life is None and (mine or listed is not None):
            within = callers if listed is None else ()
            life = _life_of(_of_the_same(mine[0][1], frame, within) if mine else frame)
        possible += [] if listed is None else [listed]
        possible += [one.timesteps for one, _ in holders]
        if holders and scheduler is None:
            scheduler, owner = holders[0]
        if mine:
            break
    known = _prepared(getattr(pipe, "scheduler", None))
    if known is not None:
        found = _in_schedule(given, known, pipe)
        if found is not None:
            return replace(found, life=_life_of(_that_stands(found, inner)))
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
        if not str(frame.f_globals.get("__name__")).startswith(_INNER) and _tells(frame.f_code):
            yield frame
        frame = frame.f_back


def _tells(code: CodeType) -> bool:
    return any(name in group for group in (code.co_varnames, code.co_names, code.co_freevars) for name in _NAMES)


def _variables(frame: FrameType, mark: Any = None) -> dict[str, Any]:
    """The variables of a frame, with ``mark`` among them where it has none yet."""
    names = frame.f_locals
    if mark is not None and _MARK not in names:
        names[_MARK] = mark
    found = dict(names)
    # Up to Python 3.12 a function's frame keeps that copy, and with it all that the function lets go of later. It is
    # emptied, unless a debugger is about to write it back, or someone else has it from `locals()`.
    mine = type(names) is dict and frame.f_code.co_flags & _OF_THE_FUNCTION
    if mine and sys.gettrace() is None and sys.getrefcount(names) <= _FRAME_AND_HERE:
        names.clear()
        if _MARK in found:
            names[_MARK] = found[_MARK]
    return found


# Among a caller's variables may be stand-ins for objects that are gone, which raise at any question: none is asked.


def _is_tensor(value: Any) -> bool:
    return issubclass(type(value), torch.Tensor)


def _own(value: Any) -> dict[str, Any]:
    """An object's attributes, none of its own code run."""
    try:
        own = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return own if isinstance(own, dict) else {}


def _listed(names: dict[str, Any]) -> torch.Tensor | None:
    listed = names.get("timesteps")
    return listed if isinstance(listed, torch.Tensor) and listed.ndim == 1 and listed.numel() else None


def _holders(values: Any) -> Iterator[tuple[Any, Any]]:
    """Schedulers among these, with what holds them."""
    for value in _spread(values):
        own = _own(value)
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
    own = _own(scheduler)
    timesteps = own.get("timesteps")
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
            if _is_tensor(value) and value.ndim == t.ndim + 1
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
    for t in (*given, getattr(owner, "_current_timestep", None)):
        place = place_in(t, scheduler.timesteps)
        if place is not None:
            return Loop((scheduler.timesteps,), place, scheduler=scheduler, owner=owner)
    return None


def _is_entry(t: Any) -> bool:
    """Whether a timestep is one entry of some longer tensor."""
    return isinstance(t, torch.Tensor) and t.ndim == 0 and t.untyped_storage().nbytes() > t.element_size()


def _each_once(tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    for i, one in enumerate(tensors):
        if not any(shares_memory(one, other) for other in tensors[:i]):
            yield one


class _Life:
    """Held by a frame alone, so that it ends when its function returns, raises or is dropped."""


def _that_walks(found: Loop, frame: FrameType, names: dict[str, Any], callers: Iterable[FrameType]) -> FrameType | None:
    """The frame of the loop, where it was found in ``frame``: what was given its timestep is only called by it.

    None where the loop is not among the callers.
    """
    for outer in callers:
        if not _is_given(found, frame, names):
            break
        variables = _variables(outer)
        if _has(found, variables) or any(_is_walked(found, value) for value in variables.values()):
            frame, names = outer, variables
    return None if _is_given(found, frame, names) else frame


def _that_stands(found: Loop, inner: Sequence[tuple[FrameType, dict[str, Any]]]) -> FrameType | None:
    """The frame of a loop over what is none of its own variables: the outermost that has its timestep from nobody."""
    for frame, names in reversed(inner):
        if _has(found, names) and not _is_given(found, frame, names):
            return frame
    return None


def _has(found: Loop, names: dict[str, Any]) -> bool:
    return any(_stands(found, value) for value in names.values())


def _is_given(found: Loop, frame: FrameType, names: dict[str, Any]) -> bool:
    """Whether a function has the timestep of a loop from elsewhere."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    return any(_stands(found, names.get(name)) for name in (*code.co_varnames[:count], *code.co_freevars))


def _stands(found: Loop, value: Any) -> bool:
    """Whether this is the timestep at which a loop stands."""
    whole = found.schedules[0]
    return _is_tensor(value) and value.ndim + 1 == whole.ndim and place_in(value, whole) == found.step


def _is_walked(found: Loop, value: Any) -> bool:
    whole = found.schedules[0]
    return _is_tensor(value) and value.ndim == whole.ndim and shares_memory(value, whole)


def _of_the_same(owner: Any, frame: FrameType, callers: Iterable[FrameType]) -> FrameType:
    """The frame of the loop, where ``frame`` calls: that, or the method of the same owner that led there."""
    for outer in callers if _is_method(owner, frame) else ():
        if _is_method(owner, outer):
            frame = outer
            if _listed(_variables(outer)) is not None:
                break
    return frame


def _is_method(owner: Any, frame: FrameType) -> bool:
    return frame.f_code.co_varnames[:1] == ("self",) and _variables(frame).get("self") is owner


def _life_of(frame: FrameType | None) -> weakref.ref | None:
    """What dies with the call of a function."""
    if frame is None or not frame.f_code.co_flags & _OF_THE_FUNCTION:
        return None
    # A name that no code can use; it stays with the frame in every version of Python.
    return weakref.ref(_variables(frame, _Life())[_MARK])
