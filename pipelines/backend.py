"""The ways into a model's attention: for chosen modules only, and without touching what others share.

Most processors ask diffusers' dispatcher for attention with the backend they name. Each self-attention module
gets a copy of its processor that names a backend of our own; the backend hands q, k and v to the runtime.
Other processors call PyTorch's attention, or the dispatcher without naming a backend: `rebinding` gives those
a private copy of their code that calls ours.

Attention is told nothing about the layer, so a wrapper around the processor writes the layer into a small CPU
tensor, the cursor, first. Both steps are custom operators: a compiled block sees two opaque calls fed with
tensors, the same in every layer and step. What is not compiled takes both steps directly, which is faster.
"""

from __future__ import annotations

import copy
import functools
import weakref
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)

from dittools.pipelines.hunyuan15 import KeyPaddedProcessor
from dittools.pipelines.rebinding import calls_torch, rebindable, rebound_class
from dittools.runtime import Runtime

# CUDA graphs replay kernels and skip the Python that decides them.
_TAGS = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
# Processors that do what no copy of them could leave out.
_REPLACED = {"HunyuanVideo15AttnProcessor2_0": KeyPaddedProcessor}
_sockets: weakref.WeakValueDictionary[int, Socket] = weakref.WeakValueDictionary()
_members: dict[int, AttentionBackendName] = {}


class Socket:
    """One acceleration's entry in diffusers' table of backends; in the table until it is closed.

    Args:
        runtime: what decides the calls.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.processors: dict[int, SparseProcessor] = {}  # by layer
        self.attachment: Any = None  # the `Attachment` that uses it
        # Numbers are used again: a compiled block then finds the backend it was compiled with.
        self.number = next(n for n in range(len(_sockets) + 1) if n not in _sockets)
        with torch.inference_mode(False):
            self.cursor = torch.zeros(2, dtype=torch.int64, device="cpu")
        self.backend = _member(self.number)
        self.function = _backend_function(self.cursor)
        _AttentionBackendRegistry.register(self.backend)(self.function)
        function = self.function
        self.rebound = functools.cache(lambda kind: rebound_class(kind, function))
        _sockets[self.number] = self
        _sweep()

    def close(self) -> None:
        """Leave the table. Wrappers that someone still holds pass everything on to their originals."""
        for processor in self.processors.values():
            processor.socket = None
        _sockets.pop(self.number, None)
        _sweep()

    def wrap(self, processor: Any, layer: int) -> SparseProcessor:
        """A processor for this layer, around the original one. It takes the place of one made before."""
        wrapped = _class_for(type(processor))(processor, self, layer)
        before = self.processors.pop(layer, None)
        if before is not None:
            before.socket = None
        self.processors[layer] = wrapped
        return wrapped


def names_backend(processor: Any) -> bool:
    """Whether the processor asks the dispatcher with a backend it names."""
    return hasattr(processor, "_attention_backend")


def can_enter(processor: Any) -> bool:
    """Whether there is a way into the attention of this processor."""
    return names_backend(processor) or rebindable(processor)


class SparseProcessor:
    """Stands in for the processor of one self-attention module; `_class_for` makes what is used."""

    def __init__(self, original: Any, socket: Socket, layer: int):
        self.original = original
        self.socket: Socket | None = socket
        # A processor may be shared with cross-attention: the copy alone is led to us.
        replacement = _REPLACED.get(type(original).__name__, copy.copy)
        self._inner = replacement(original)
        if names_backend(original):
            self._inner._attention_backend = socket.backend
        else:
            self._inner.__class__ = socket.rebound(type(original))
        self._cursor = socket.cursor
        with torch.inference_mode(False):
            self._place = torch.tensor([socket.number, layer], device="cpu")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.socket is None:
            return self.original(*args, **kwargs)
        if torch.is_grad_enabled():
            # The sparse kernels have no backward.
            torch.ops.dittools.skip_layer(self._cursor, self._place)
            return self.original(*args, **kwargs)
        if torch.compiler.is_compiling():
            torch.ops.dittools.enter_layer(self._cursor, self._place)
        else:
            self._cursor.copy_(self._place)
        return self._inner(*args, **kwargs)

    # The backend and parallel plan a user sets go to the original, where dense calls read them.
    @property
    def _attention_backend(self) -> Any:
        return self.original._attention_backend

    @_attention_backend.setter
    def _attention_backend(self, backend: Any) -> None:
        self.original._attention_backend = backend

    @property
    def dense_backend(self) -> Any:
        """The backend of dense calls: the one the original names, or what it calls without naming any."""
        if names_backend(self.original):
            return self.original._attention_backend
        return AttentionBackendName.NATIVE if calls_torch(self.original) else None

    @property
    def _parallel_config(self) -> Any:
        return getattr(self.original, "_parallel_config", None)

    @_parallel_config.setter
    def _parallel_config(self, config: Any) -> None:
        self.original._parallel_config = config


@functools.cache
def _class_for(kind: type) -> type[SparseProcessor]:
    """A `SparseProcessor` that shows the signature of the processors it stands in for.

    diffusers' `Attention` drops arguments that the processor's signature does not name, rotary embeddings
    among them.
    """

    @functools.wraps(kind.__call__)
    def call(self, *args: Any, **kwargs: Any) -> Any:
        return SparseProcessor.__call__(self, *args, **kwargs)

    return type(f"Sparse{kind.__name__}", (SparseProcessor,), {"__call__": call})


@torch.library.custom_op(
    "dittools::enter_layer", mutates_args=("cursor",), schema="(Tensor(a!) cursor, Tensor place) -> ()"
)
def _enter_layer(cursor: torch.Tensor, place: torch.Tensor) -> None:
    """Write (socket number, layer) into the cursor."""
    cursor.copy_(place)


@_enter_layer.register_fake
def _(cursor, place):
    return None


@torch.library.custom_op(
    "dittools::skip_layer", mutates_args=("cursor",), schema="(Tensor(a!) cursor, Tensor place) -> ()"
)
def _skip_layer(cursor: torch.Tensor, place: torch.Tensor) -> None:
    """Count that this layer runs as if nothing were attached."""
    # Written so that a compiler does not drop the call.
    cursor.copy_(place)
    number, layer = place.tolist()
    _sockets[number].runtime.skip(layer, "gradients are enabled: call the pipeline under torch.no_grad()")


@_skip_layer.register_fake
def _(cursor, place):
    return None


@torch.library.custom_op(
    "dittools::skip_call", mutates_args=("cursor",), schema="(Tensor(a!) cursor, str reason) -> ()"
)
def _skip_call(cursor: torch.Tensor, reason: str) -> None:
    """Count that the layer under the cursor runs dense."""
    number, layer = cursor.tolist()
    _sockets[number].runtime.skip(layer, reason)


@_skip_call.register_fake
def _(cursor, reason):
    return None


def _attend(q, k, v, mask, cursor, scale, dropout, causal, grouped):
    """Attention of the layer under the cursor: ``[B, S, H, D]``, contiguous as the fake one promises."""
    number, layer = cursor.tolist()
    socket = _sockets[number]
    processor = socket.processors[layer]
    parallel = processor._parallel_config

    def dense() -> torch.Tensor:
        call = {"attn_mask": mask, "dropout_p": dropout, "is_causal": causal, "scale": scale}
        backend = processor.dense_backend
        return dispatch_attention_fn(q, k, v, **call, enable_gqa=grouped, backend=backend, parallel_config=parallel)

    why_dense = None
    if causal or dropout:
        why_dense = "the call is causal or has dropout"
    elif parallel is not None:
        why_dense = "context parallelism is on"
    heads = q.shape[2] // k.shape[2] if grouped else 1
    keys, values = (x if heads == 1 else x.repeat_interleave(heads, dim=2) for x in (k, v))
    runtime = socket.runtime
    out = runtime.attend(layer, q, keys, values, dense=dense, scale=scale, mask=mask, why_dense=why_dense)
    return out.contiguous()


_attend_op = torch.library.custom_op(
    "dittools::attend",
    _attend,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor cursor, float? scale, float dropout, "
    "bool causal, bool grouped) -> Tensor",
    **_TAGS,
)


@_attend_op.register_fake
def _(q, k, v, mask, cursor, scale, dropout, causal, grouped):
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _backend_function(cursor: torch.Tensor) -> Any:
    def dittools_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if attn_mask is not None and not isinstance(attn_mask, torch.Tensor):
            # A mask of flex attention: only that can read it.
            torch.ops.dittools.skip_call(cursor, "the model brings a block mask of its own")
            call = {"attn_mask": attn_mask, "scale": scale, "enable_gqa": enable_gqa}
            return dispatch_attention_fn(query, key, value, **call, backend=AttentionBackendName.FLEX)
        call = (attn_mask, cursor, scale, dropout_p, is_causal, enable_gqa)
        attend = torch.ops.dittools.attend if torch.compiler.is_compiling() else _attend
        return attend(query, key, value, *call)

    return dittools_attention


def _member(number: int) -> AttentionBackendName:
    """A backend name that dispatch accepts and no listing shows: it is not put into the enum's tables."""
    if number not in _members:
        member = str.__new__(AttentionBackendName, f"dittools_{number}")
        member._name_, member._value_ = f"DITTOOLS_{number}", f"dittools_{number}"
        _members[number] = member
    return _members[number]


def _sweep() -> None:
    """Take backends out of the table whose socket was closed, or went away with its pipeline.

    Not done when a socket is collected: that may be in the middle of a compilation that reads the table.
    """
    for number, backend in _members.items():
        if number not in _sockets:
            for table in ("_backends", "_constraints", "_supported_arg_names"):
                getattr(_AttentionBackendRegistry, table).pop(backend, None)
