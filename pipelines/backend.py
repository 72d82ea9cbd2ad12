"""The ways into a model's attention: for chosen modules only, and without touching what others share.

Most processors ask diffusers' dispatcher for attention with the backend they name; while a layer of ours runs, they
name a backend of our own, which hands q, k and v to the runtime. Other processors call PyTorch's attention, or the
dispatcher without naming a backend: `rebinding` gives those a private copy of their code that calls ours. How a
processor is led there, and stays what it is, is in `seats`.

Attention is told nothing about the layer, so the seat of the layer is written into a small CPU tensor, `current_layer`,
first. Both steps are custom operators: a compiled block sees two opaque calls fed with tensors, the same in every
layer and step. What is not compiled takes both steps directly, which is faster.
"""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)

from dittools.call_info import AttentionInputs
from dittools.dense_frames import attend_frames
from dittools.pipelines.laid_out_masks import shows_as_laid_out
from dittools.pipelines.own_masks import OWN_MASK, blocks_of
from dittools.pipelines.parallel.plans import WHOLE
from dittools.pipelines.parallel.ulysses import attend as attend_shared
from dittools.pipelines.parallel.ulysses import context_of
from dittools.pipelines.rebinding import calls_torch
from dittools.runtime import Runtime

if TYPE_CHECKING:
    from dittools.pipelines.seats import Seat

# CUDA graphs replay kernels and skip the Python that decides them.
_TAGS = {"tags": (torch.Tag.cudagraph_unsafe,)} if hasattr(torch.Tag, "cudagraph_unsafe") else {}
_slots_in_use: weakref.WeakValueDictionary[int, BackendSlot] = weakref.WeakValueDictionary()


class Line:
    """What all slots of one number use in turn: a compiled block finds again what it was compiled with."""

    def __init__(self, number: int):
        with torch.inference_mode(False):
            self.current_layer = torch.zeros(2, dtype=torch.int64, device="cpu")
        # A name that dispatch accepts and no listing shows: it is not put into the enum's tables.
        self.backend = str.__new__(AttentionBackendName, f"dittools_{number}")
        self.backend._name_, self.backend._value_ = f"DITTOOLS_{number}", f"dittools_{number}"
        self.function = _backend_function(self.current_layer)


_line = functools.cache(Line)


class BackendSlot:
    """One acceleration's entry in diffusers' table of backends; in the table until it is closed.

    Args:
        runtime: what decides the calls.
    """

    def __init__(self, runtime: Runtime):
        self.runtime = runtime
        self.seats: dict[int, Seat] = {}  # by layer
        self.models: dict[int, weakref.ref] = {}  # the transformer of each layer
        self.known: tuple | None = None  # the latest block mask, layout and keys, and whether they say the same
        self.attachment: Any = None  # the `Attachment` that uses it
        self.number = next(n for n in range(len(_slots_in_use) + 1) if n not in _slots_in_use)
        self.line = _line(self.number)
        _AttentionBackendRegistry.register(self.line.backend)(self.line.function)
        _slots_in_use[self.number] = self
        _sweep()

    def parallel(self, layer: int) -> Any:
        """What `enable_parallelism` left on a layer's processor, or on its transformer where the processor takes
        none; None where the layer sees all it needs on every rank.
        """
        if getattr(self.seats[layer].module, WHOLE, False):
            return None
        found = getattr(self.seats[layer].processor, "_parallel_config", None)
        if found is None and layer in self.models:
            found = getattr(self.models[layer](), "_parallel_config", None)
            return None if context_of(found) is None else found
        return found

    def close(self) -> None:
        """Leave the table."""
        _slots_in_use.pop(self.number, None)
        _sweep()


def open_slots() -> list[BackendSlot]:
    """Those of all accelerations that are on some pipeline."""
    return list(_slots_in_use.values())


def names_backend(processor: Any) -> bool:
    """Whether the processor asks the dispatcher with a backend it names."""
    return hasattr(processor, "_attention_backend")


def dense_backend(processor: Any) -> Any:
    """The backend of a processor's dense calls: the one it names, or what it calls without naming any."""
    if names_backend(processor):
        return processor._attention_backend
    return AttentionBackendName.NATIVE if calls_torch(processor) else None


_on_layer = functools.partial(torch.library.custom_op, mutates_args=("current_layer",))


@_on_layer("dittools::enter_layer", schema="(Tensor(a!) current_layer, Tensor place) -> ()")
def _enter_layer(current_layer: torch.Tensor, place: torch.Tensor) -> None:
    """Write (slot number, layer) into ``current_layer``."""
    current_layer.copy_(place)


@_on_layer("dittools::skip_layer", schema="(Tensor(a!) current_layer, Tensor place) -> ()")
def _skip_layer(current_layer: torch.Tensor, place: torch.Tensor) -> None:
    """Count that this layer runs as if nothing were attached."""
    # Written so that a compiler does not drop the call.
    current_layer.copy_(place)
    number, layer = place.tolist()
    _slots_in_use[number].runtime.skip(layer, "gradients are enabled: call the pipeline under torch.no_grad()")


@_on_layer("dittools::skip_call", schema="(Tensor(a!) current_layer, str reason) -> ()")
def _skip_call(current_layer: torch.Tensor, reason: str) -> None:
    """Count that the current layer runs dense."""
    number, layer = current_layer.tolist()
    _slots_in_use[number].runtime.skip(layer, reason)


for _operator in (_enter_layer, _skip_layer, _skip_call):
    _operator.register_fake(lambda current_layer, said: None)


class Settings(NamedTuple):
    """What a call to diffusers' dispatcher says beside its tensors; arguments of an operator are plain values."""

    scale: float | None
    dropout: float
    causal: bool
    grouped: bool  # whether queries have more heads than keys


def _attend(q, k, v, mask, current_layer, *settings):
    """Attention of the current layer: ``[B, S, H, D]``, contiguous as the fake one promises.

    Args:
        settings: the fields of `Settings`.
    """
    scale, dropout, causal, grouped = Settings(*settings)
    number, layer = current_layer.tolist()
    slot = _slots_in_use[number]
    processor, runtime, parallel = slot.seats[layer].processor, slot.runtime, slot.parallel(layer)

    def dispatch(q, k, v, mask, config: Any = None, grouped: bool = False) -> torch.Tensor:
        call = {"attn_mask": mask, "dropout_p": dropout, "is_causal": causal, "scale": scale, "enable_gqa": grouped}
        return dispatch_attention_fn(q, k, v, **call, backend=dense_backend(processor), parallel_config=config)

    def dense() -> torch.Tensor:
        if mask is None and parallel is None and not grouped and _goes_by_frames(slot, processor, q, k):
            return attend_frames(runtime.layout, q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)
        return dispatch(q, k, v, mask, parallel, grouped)

    read = mask  # as PyTorch's attention takes it; dense calls have it as the model made it
    if mask is not None and mask.ndim == 2 and mask.shape == (len(q), k.shape[1]):
        read = mask[:, None, None]  # of keys, for each sample
    why_dense = "the call is causal or has dropout" if causal or dropout else None
    heads = q.shape[2] // k.shape[2] if grouped else 1
    keys, values = (x if heads == 1 else x.repeat_interleave(heads, dim=2) for x in (k, v))
    context = context_of(parallel)
    if context is None:
        out = runtime.attend(layer, q, keys, values, dense=dense, scale=scale, mask=read, why_dense=why_dense)
    else:
        scale_ = q.shape[-1] ** -0.5 if scale is None else scale
        inputs = AttentionInputs(layer, q, keys, values, scale_, read)
        out = attend_shared(runtime, inputs, context, dispatch, dense, why_dense)
    return out.contiguous()


def _attend_own(q, k, v, current_layer, call: dict[str, Any]) -> torch.Tensor:
    """Attention of the current layer under a block mask of the model's own: by our kernels where a method takes it,
    else by flex attention, counted.

    Args:
        call: "attn_mask", "scale" and "enable_gqa", as the dispatcher takes them.
    """

    def flex() -> torch.Tensor:
        return dispatch_attention_fn(q, k, v, **call, backend=AttentionBackendName.FLEX)

    number, layer = current_layer.tolist()
    slot = _slots_in_use[number]
    why = OWN_MASK
    if slot.runtime.takes_own and context_of(slot.parallel(layer)) is None and q.shape[2] == k.shape[2]:
        own = blocks_of(call["attn_mask"], q, k)
        if not isinstance(own, str):
            scale = q.shape[-1] ** -0.5 if call["scale"] is None else call["scale"]
            return slot.runtime.attend_inputs(AttentionInputs(layer, q, k, v, scale, own=own), flex).contiguous()
        why = own
    slot.runtime.skip(layer, why)
    return flex()


def _attend_as_laid_out(q, k, v, mask: Any, current_layer: torch.Tensor, scale: float | None) -> torch.Tensor:
    """Attention of the current layer whose block mask says what the layout of its forward does.

    Dense calls of sparse runs go frame by frame: flex attention that is not compiled makes all logits at once.
    """
    number, layer = current_layer.tolist()
    runtime = _slots_in_use[number].runtime
    layout, factor = runtime.layout, q.shape[-1] ** -0.5 if scale is None else scale

    def dense() -> torch.Tensor:
        if runtime.config.method != "dense":
            return attend_frames(layout, q, k, v, factor)
        return dispatch_attention_fn(q, k, v, attn_mask=mask, scale=scale, backend=AttentionBackendName.FLEX)

    return runtime.attend(layer, q, k, v, dense=dense, scale=scale).contiguous()


def _goes_by_frames(slot: BackendSlot, processor: Any, q: torch.Tensor, k: torch.Tensor) -> bool:
    """Whether a dense call of a sparse run is one that flex attention would make without need of it."""
    runtime, layout = slot.runtime, slot.runtime.layout
    flex = str(getattr(dense_backend(processor), "value", dense_backend(processor))) in ("flex", "_native_flex")
    if not flex or runtime.config.method == "dense" or layout is None:
        return False
    laid_out = any(part.seen_by is not None for part in layout.parts)
    return laid_out and layout.queries_of(k.shape[1]) == q.shape[1]


def _knows(current_layer: torch.Tensor, mask: Any, keys: int) -> bool:
    """Whether the layout of the present forward tells what a block mask of flex attention shows.

    Asked of the mask itself at both ends of every frame and part, once for a mask and layout.
    """
    number, layer = current_layer.tolist()
    slot = _slots_in_use[number]
    layout = slot.runtime.layout
    if layout is None or slot.parallel(layer) is not None or all(part.seen_by is None for part in layout.parts):
        return False
    if slot.known is None or slot.known[0]() is not mask or slot.known[1:3] != (layout, keys):
        slot.known = (weakref.ref(mask), layout, keys, shows_as_laid_out(mask, layout, keys))
    return slot.known[3]


_attend_op = torch.library.custom_op(
    "dittools::attend",
    _attend,
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor current_layer, float? scale, float dropout, "
    "bool causal, bool grouped) -> Tensor",
    **_TAGS,
)


@_attend_op.register_fake
def _(q, k, v, mask, current_layer, *settings):
    return q.new_empty((*q.shape[:-1], v.shape[-1]))


def _backend_function(current_layer: torch.Tensor) -> Any:
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
            if not torch.compiler.is_compiling() and _knows(current_layer, attn_mask, key.shape[1]):
                return _attend_as_laid_out(query, key, value, attn_mask, current_layer, scale)
            call = {"attn_mask": attn_mask, "scale": scale, "enable_gqa": enable_gqa}
            if not torch.compiler.is_compiling():
                return _attend_own(query, key, value, current_layer, call)
            # A mask of flex attention: only that can read it.
            torch.ops.dittools.skip_call(current_layer, OWN_MASK)
            return dispatch_attention_fn(query, key, value, **call, backend=AttentionBackendName.FLEX)
        settings = Settings(scale, dropout_p, is_causal, enable_gqa)
        attend = torch.ops.dittools.attend if torch.compiler.is_compiling() else _attend
        return attend(query, key, value, attn_mask, current_layer, *settings)

    return dittools_attention


def _sweep() -> None:
    """Take backends out of the table whose slot was closed, or went away with its pipeline.

    Not done when a slot is collected: that may be in the middle of a compilation that reads the table.
    """
    live = {slot.line.backend for slot in open_slots()}
    for table in ("_backends", "_constraints", "_supported_arg_names"):
        entries = getattr(_AttentionBackendRegistry, table)
        for backend in [name for name in entries if name.value.startswith("dittools_") and name not in live]:
            del entries[backend]
