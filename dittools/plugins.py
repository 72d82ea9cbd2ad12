"""Methods, caches and corrections of your own, beside those that ship."""

from __future__ import annotations

from typing import TypeVar

from dittools.caches import CACHES
from dittools.corrections import CORRECTIONS
from dittools.methods import METHODS

REGISTRIES = (METHODS, CACHES, CORRECTIONS)
T = TypeVar("T", bound=type)


def register(cls: T) -> T:
    """Make a method, cache or correction known by the name it gives itself, for this process.

    As a decorator it stands above ``@dataclass``. A package that is installed needs no call: it names its classes as
    entry points in the groups ``dittools.methods``, ``dittools.caches`` and ``dittools.corrections``, under the names
    that they have themselves.

    Args:
        cls: a dataclass derived from `dittools.methods.Method`, `dittools.caches.Cache` or
            `dittools.corrections.Correction`, with `name` and `summary`.

    Returns:
        The class itself.

    Raises:
        ValueError: when it is none of these, or its name is taken.
    """
    for registry in REGISTRIES:
        if isinstance(cls, type) and issubclass(cls, registry.base):
            return registry.register(cls)
    found = getattr(cls, "__qualname__", repr(cls))
    raise ValueError(f"register takes a class derived from Method, Cache or Correction, got {found}")
