"""Stands in front of a module's calls, so that a call can be answered without running the module.

`torch.nn.Module` asks an instance's `_compiled_call_impl` first: `Module.compile` puts its own there. What is put
there is outside of everything else a call goes through (forward hooks, offloading, context parallelism, a compiled
graph), whatever is installed first and removed last, and a copied or pickled module does not take it along.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_SLOT = "_compiled_call_impl"
Handler = Callable[[Callable[..., Any], tuple, dict[str, Any]], Any]


class CallInterceptor:
    """Answers the calls of one module by ``handler(inner, args, kwargs)``, where ``inner`` runs the module.

    Args:
        module: whose calls.
        handler: what answers.
    """

    def __init__(self, module: torch.nn.Module, handler: Handler):
        self._module = module
        self._handler = handler
        self._theirs: Callable[..., Any] | None = None

    def ensure(self) -> None:
        """Stand in front, also of what came since: `Module.compile` takes the place."""
        present = self._module.__dict__.get(_SLOT)
        if present is not self:
            self._theirs = present
            setattr(self._module, _SLOT, self)

    def remove(self) -> None:
        """Leave, unless someone took the place."""
        if self._module.__dict__.get(_SLOT) is not self:
            return
        if self._theirs is None:
            del self._module.__dict__[_SLOT]
        else:
            setattr(self._module, _SLOT, self._theirs)

    @torch.compiler.disable
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._handler(self._theirs or self._module._call_impl, args, kwargs)
