"""What hangs on a module and is not for its copies: a copied or pickled transformer is a plain one."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import MethodType
from typing import Any

import torch


class Unshared:
    """A forward hook that a copy of its module has no more than a trace of.

    Args:
        call: the hook.
    """

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(*args, **kwargs)

    def __reduce__(self) -> tuple:
        return _left_out, ()


class Listening:
    """Stands in front of a module's method; bound to a copy of the module it is the class's own method.

    Args:
        module: whose method.
        name: of the method.
        answer: called with what stood there before, and the arguments.
    """

    def __init__(self, module: torch.nn.Module, name: str, answer: Callable[..., AbstractContextManager]):
        self.__name__ = name  # under which a pickle looks the method up
        self._module = weakref.ref(module)
        self._answer = weakref.WeakMethod(answer)
        self._theirs = module.__dict__.get(name)
        self._bound = MethodType(self, module)
        module.__dict__[name] = self._bound

    def __call__(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        answer = self._answer() if module is self._module() else None
        theirs = self._theirs if module is self._module() and self._theirs is not None else None
        theirs = theirs or MethodType(getattr(type(module), self.__name__), module)
        return theirs(*args, **kwargs) if answer is None else answer(theirs, *args, **kwargs)

    def remove(self) -> None:
        """Leave. Where someone wrapped it since, it has to stay inside theirs; it only passes things on."""
        module, self._answer = self._module(), lambda: None
        if module is not None and module.__dict__.get(self.__name__) is self._bound:
            del module.__dict__[self.__name__]
            if self._theirs is not None:
                module.__dict__[self.__name__] = self._theirs
        self._bound = None


def _nothing(*args: Any, **kwargs: Any) -> None:
    """The hook of a copy."""


def _left_out() -> Callable[..., None]:
    return _nothing
