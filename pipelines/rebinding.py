"""A processor that calls PyTorch's attention itself, with that one call led elsewhere.

A processor's code finds what it calls in its module's globals. A copy of the processor gets a class of its own
whose ``__call__`` is the same code over a copy of those globals in which attention is ours. Neither the module
nor the original processor is touched, and a compiler sees an ordinary function.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F

_TORCH, _DISPATCH = "scaled_dot_product_attention", "dispatch_attention_fn"


def kind_of(processor: Any) -> type:
    """The class of a processor, whether calls of it are led elsewhere or not."""
    return getattr(type(processor), "_dittools_kind", type(processor))


def is_led(processor: Any) -> bool:
    """Whether some module's calls of this processor are led elsewhere."""
    return hasattr(type(processor), "_dittools_kind")


def rebindable(processor: Any) -> bool:
    """Whether the code of this processor calls attention under a name that can be led elsewhere."""
    call = _call_of(processor)
    return call is not None and bool(_torch_names(call) or _DISPATCH in call.__code__.co_names)


def calls_torch(processor: Any) -> bool:
    """Whether its code calls PyTorch's attention."""
    return bool(_torch_names(_call_of(processor)))


def rebound_class(kind: type, attention: Callable) -> type:
    """A class like this processor's, whose attention is ``attention``.

    One class serves all layers, so that they compile to one graph.

    Args:
        kind: class of a processor that is `rebindable`.
        attention: takes ``query, key, value [B, S, H, D]`` and the options of PyTorch's attention by name.
    """
    call = kind.__call__
    own = {name: _Functional(_transposed(attention)) for name in _torch_names(call)}
    if _DISPATCH in call.__code__.co_names:
        own[_DISPATCH] = _without_backend(attention)
    # Without a name: a compiler would look a named module's globals up in the module itself.
    scope = {name: value for name, value in call.__globals__.items() if name != "__name__"} | own
    code = types.FunctionType(call.__code__, scope, call.__name__, call.__defaults__, call.__closure__)
    code.__kwdefaults__ = call.__kwdefaults__
    return type(kind.__name__, (kind,), {"__call__": code})


class _Functional:
    """`torch.nn.functional`, with attention of our own."""

    def __init__(self, attention: Callable):
        self.scaled_dot_product_attention = attention

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


def _call_of(processor: Any) -> types.FunctionType | None:
    call = next((k.__dict__["__call__"] for k in kind_of(processor).__mro__ if "__call__" in k.__dict__), None)
    return call if isinstance(call, types.FunctionType) else None


def _torch_names(call: types.FunctionType | None) -> list[str]:
    """Names under which the code reaches `torch.nn.functional` to call attention."""
    if call is None or _TORCH not in call.__code__.co_names:
        return []
    return [name for name in call.__code__.co_names if call.__globals__.get(name) is F]


def _transposed(attention: Callable) -> Callable:
    """Attention as PyTorch has it: tensors ``[B, H, S, D]``."""

    def scaled_dot_product_attention(query, key, value, *args: Any, **kwargs: Any):
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        return attention(query, key, value, *args, **kwargs).transpose(1, 2)

    return scaled_dot_product_attention


def _without_backend(attention: Callable) -> Callable:
    """Attention as the dispatcher has it."""

    def dispatch_attention_fn(*args: Any, backend=None, parallel_config=None, attention_kwargs=None, **kwargs: Any):
        return attention(*args, **kwargs)

    return dispatch_attention_fn
