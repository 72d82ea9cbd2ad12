"""A processor that is led elsewhere in some modules, and stays what it is everywhere.

Others find processors by their class, set their attributes, move and save their weights, and put them back later. So
none is replaced: the processor of a self-attention module gets a class derived from its own, which looks at the module
it is called for. Where that module has a seat, the call runs through the processor's twin, which has the very same
attributes and weights, and whose attention is ours; elsewhere (cross-attention that shares the processor, a module it
was moved to, after the end) the processor does what it always did. `processor.__class__` still says the class that it
had, copies and pickles are of that class, and the end gives it back.

A copied or pickled module takes no seat along.
"""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch._guards import CompileContext

from dittools.pipelines.backend import BackendSlot, Line, names_backend, open_slots
from dittools.pipelines.compiler import why_not_compiled
from dittools.pipelines.hunyuan15 import key_padded
from dittools.pipelines.rebinding import is_led, kind_of, rebindable, rebound_class

_SEAT = "_dittools_seat"
# Processors that do what no copy of their code could leave out.
_FLEX_ALONE = ("AnyFlowCausalAttnProcessor", "WanAnimate2AttnProcessor")
"""Processors that take no backend but flex attention."""
_REPLACED = {"HunyuanVideo15AttnProcessor2_0": key_padded}


class Seat:
    """The place of one layer of an acceleration at its attention module.

    Args:
        module: the attention module.
        slot: the acceleration's.
        layer: index of the layer in its runtime.

    Attributes:
        processor: the one that is led to the slot.
        twin: what runs in its place.
        current_layer, place: CPU tensors: where the layer is written, and what.
    """

    def __init__(self, module: torch.nn.Module, slot: BackendSlot, layer: int):
        self.slot, self.layer = slot, layer
        self.current_layer = slot.line.current_layer
        with torch.inference_mode(False):
            self.place = torch.tensor([slot.number, layer], device="cpu")
        self.processor: Any = None
        self.twin: Any = None
        self._module = weakref.ref(module)
        self._led: list[weakref.ref] = []  # all processors that it led, some of which others may hold
        slot.seats[layer] = self
        module.__dict__[_SEAT] = self

    @property
    def module(self) -> torch.nn.Module | None:
        """The attention module, while there is one."""
        return self._module()

    def follow(self) -> bool:
        """Lead the processor that the module has now. False where there is no way into its attention."""
        processor = self._module().processor
        if processor is self.processor:
            return True
        if not can_enter(processor):
            return False
        twin = _twin(processor, self.slot.line)
        if not is_led(processor):
            _CLASS.__set__(processor, _led_class(type(processor)))
        self._led.append(weakref.ref(processor))
        self.processor, self.twin = processor, twin
        return True

    def leave(self) -> None:
        """Give the module and its processors back, but for those that another acceleration leads."""
        module = self._module()
        if module is not None and module.__dict__.get(_SEAT) is self:
            del module.__dict__[_SEAT]
        self.slot.seats.pop(self.layer, None)
        mine, self._led = [found for found in (ref() for ref in self._led) if found is not None], []
        elsewhere = {id(seat.processor) for slot in open_slots() for seat in slot.seats.values()}
        for processor in mine:
            if is_led(processor) and id(processor) not in elsewhere:
                _CLASS.__set__(processor, kind_of(processor))

    def __reduce__(self) -> tuple:
        return type(None), ()


def seat_of(module: Any) -> Seat | None:
    """The seat at a module."""
    return getattr(module, _SEAT, None)


def can_enter(processor: Any) -> bool:
    """Whether there is a way into the attention of this processor."""
    takes_a_class = hasattr(processor, "__dict__") and hasattr(processor, "__weakref__")
    return takes_a_class and not _slots(kind_of(processor)) and (names_backend(processor) or rebindable(processor))


def _slots(kind: type) -> set[str]:
    """Names of attributes that are in no object's ``__dict__``, which is all that a processor and its twin share."""
    slots = (base.__dict__.get("__slots__", ()) for base in kind.__mro__)
    named = {name for found in slots for name in ([found] if isinstance(found, str) else found)}
    return named - {"__dict__", "__weakref__"}


# What a class may hide behind a property, as ours do, is still set by this.
_CLASS = object.__dict__["__class__"]


def _twin(processor: Any, line: Line) -> Any:
    """An object with the same attributes, not copies of them, whose attention is that of the line."""
    twin = object.__new__(_twin_class(kind_of(processor), line, names_backend(processor)))
    object.__setattr__(twin, "__dict__", processor.__dict__)
    return twin


@functools.cache
def _twin_class(kind: type, line: Line, named: bool) -> type:
    """One class serves all layers, so that they compile to one graph."""
    if not named or kind.__name__ in _FLEX_ALONE:
        return rebound_class(kind, line.function)
    backend = line.backend
    members: dict[str, Any] = {
        "_attention_backend": _shown(backend, "_attention_backend"),
        "_parallel_config": _shown(None, "_parallel_config"),
    }
    if kind.__name__ in _REPLACED:
        members["__call__"] = _REPLACED[kind.__name__]
    return type(kind.__name__, (kind,), members)


def _shown(value: Any, name: str) -> property:
    """What only the twin sees of an attribute; what it sets is for both."""

    def write(self, given: Any) -> None:
        self.__dict__[name] = given

    return property(lambda self: value, write)


@functools.cache
def _led_class(kind: type) -> type:
    """The class of processors of this kind that are led elsewhere in modules with a seat.

    It shows the signature of the processor's own call: diffusers' `Attention` drops arguments that this does not
    name, rotary embeddings among them.
    """

    no_compiler = why_not_compiled() if names_backend(kind) else None

    @functools.wraps(kind.__call__)
    def call(self, *args: Any, **kwargs: Any) -> Any:
        seat = getattr(args[0] if args else kwargs.get("attn"), _SEAT, None)
        if seat is None:
            return kind.__call__(self, *args, **kwargs)
        if torch.compiler.is_compiling():
            if torch.is_grad_enabled():
                torch.ops.dittools.skip_layer(seat.current_layer, seat.place)
                return kind.__call__(self, *args, **kwargs)
            torch.ops.dittools.enter_layer(seat.current_layer, seat.place)
            if no_compiler is not None:
                torch.ops.dittools.skip_call(seat.current_layer, no_compiler)
                return kind.__call__(self, *args, **kwargs)
        else:
            if seat.processor is not self:
                return kind.__call__(self, *args, **kwargs)
            if torch.is_grad_enabled():  # the sparse kernels have no backward
                torch.ops.dittools.skip_layer(seat.current_layer, seat.place)
                return kind.__call__(self, *args, **kwargs)
            seat.current_layer.copy_(seat.place)
        return seat.twin(*args, **kwargs)

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return kind(*args, **kwargs)

    def reduce(self, protocol: Any) -> Any:
        plain = object.__new__(kind)
        object.__setattr__(plain, "__dict__", self.__dict__)
        return plain.__reduce_ex__(protocol)

    members = {
        "__call__": call,
        "__new__": new,
        "__reduce_ex__": reduce,
        # A compiler has to see the class whose code it follows.
        "__class__": property(lambda self: kind if CompileContext.try_get() is None else type(self)),
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
        "_dittools_kind": kind,
    }
    return type(kind.__name__, (kind,), members)
