"""A layer's attention where diffusers splits the sequence among ranks: planned and attended by heads.

diffusers sets a config on the processors and splits and gathers tokens by the model's plan, outside of attention; what
it does within, three all-to-alls around a dense kernel, is done here instead, so that every rank has all tokens of some
heads, in their places, and the runtime decides as on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dittools.call_info import AttentionInputs
from dittools.masks import four
from dittools.pipelines.errors import BadInput
from dittools.pipelines.parallel import ring
from dittools.pipelines.parallel.exchange import Exchange, token_counts
from dittools.pipelines.parallel.joint import places_of
from dittools.ranks import ALONE, Ranks
from dittools.runtime import Runtime
from dittools.stopwatch import Stopwatch
from dittools.tokens import Layout

Dispatch = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, "torch.Tensor | None"], torch.Tensor]
"""Dense attention of tensors ``[B, S, H, D]`` and a mask, by this process alone."""


def context_of(config: Any) -> Any:
    """diffusers' `ContextParallelConfig` in what `enable_parallelism` left on a model or processor, or None."""
    return getattr(config, "context_parallel_config", None)


def ranks_of(model: Any, device: torch.device) -> Ranks:
    """The ranks that make every forward of a transformer together."""
    context = context_of(getattr(model, "_parallel_config", None))
    return ALONE if context is None else Ranks(context._flattened_mesh.get_group(), device)


def check_shares(model: Any, layout: Layout, text: int) -> None:
    """Raises BadInput where ranks cannot share tokens evenly, and diffusers was not told that they may have more or
    fewer.

    Args:
        model: the transformer.
        layout: of its sequence.
        text: tokens of text in it.
    """
    context = context_of(getattr(model, "_parallel_config", None))
    if context is None or context.ulysses_anything or context.ring_anything or layout.one_sequence:
        return
    ranks = context.ulysses_degree * context.ring_degree
    apart = layout.apart(layout.parts)
    rest = sum(part.tokens or 0 for part, other in zip(layout.parts, apart, strict=True) if not other)
    both = context.ulysses_degree > 1 and context.ring_degree > 1
    anything = "ulysses_anything" if context.ring_degree == 1 else "ring_anything"
    remedy = "use Ulysses or a ring alone" if both else f"say ContextParallelConfig(..., {anything}=True)"
    for tokens, what in ((rest, "tokens"), (text, "tokens of text")):
        if tokens % ranks:
            raise BadInput(f"{tokens} {what} cannot be shared evenly by {ranks} ranks: {remedy}, or use another size")


def why_theirs(call: AttentionInputs, context: Any) -> str | None:
    """The reason for which a call runs as diffusers runs it, or None where it can be shared by heads."""
    q, mask = call.q, call.mask
    if q.shape[2] < context.ulysses_degree:
        return f"{context.ulysses_degree} ranks share {q.shape[2]} heads"
    if mask is not None:
        rows, keys = four(mask).shape[2:]
        one_rank = keys == q.shape[1] and rows == 1
        tokens = q.shape[1] if one_rank else _tokens(q, context)
        if not one_rank and not (keys in (1, tokens) and rows in (1, tokens)):
            return f"context parallelism with an attention mask of {list(mask.shape)} for {q.shape[1]} tokens of a rank"
    return None


def _tokens(q: torch.Tensor, context: Any) -> int:
    """Tokens of all ranks. Waits for the device where they may have more or fewer."""
    even = not (context.ulysses_anything or context.ring_anything)
    return sum(token_counts(Ranks(context._flattened_mesh.get_group(), q.device), q.shape[1], even))


def attend(
    runtime: Runtime,
    call: AttentionInputs,
    context: Any,
    dispatch: Dispatch,
    theirs: Callable[[], torch.Tensor],
    why_dense: str | None,
) -> torch.Tensor:
    """Attention of a layer of which this rank has some tokens and all heads: ``[B, S of this rank, H, D]``.

    Args:
        call: q, k and v of as many heads.
        context: diffusers' config of it.
        dispatch: dense attention of what is given to it.
        theirs: the call as diffusers makes it.
        why_dense: a reason known by the caller for which only that will do.
    """
    if call.q.shape[1] != call.k.shape[1]:
        return runtime.attend_inputs(call, theirs, why_dense)  # keys of other tokens
    why = why_dense or why_theirs(call, context)
    if why is not None:
        return runtime.attend_inputs(call._replace(spread=context.ulysses_degree * context.ring_degree), theirs, why)
    shared = _by_heads if context.ring_degree == 1 else ring.attend
    return runtime.reusing(call, lambda: shared(runtime, call, context, dispatch))


def _by_heads(runtime: Runtime, call: AttentionInputs, context: Any, dispatch: Dispatch) -> torch.Tensor:
    """`attend` with tokens exchanged for heads, and back."""
    q, k, v = call.q, call.k, call.v
    ranks = Ranks(context._ulysses_mesh.get_group(), q.device)
    watch = Stopwatch(q.device)
    counts = token_counts(ranks, q.shape[1], even=not context.ulysses_anything)
    heads = runtime.heads_of(call.layer, ranks, q.shape[2])
    exchange = Exchange(heads, places_of(counts, runtime.layout))
    mask = _mask_of_all(call.mask, q.shape[1], exchange)
    q, k, v = exchange.forth((q, k, v))
    watch.stop()
    shared = AttentionInputs(call.layer, q, k, v, call.scale, mask, heads)
    out = runtime.attend_inputs(shared, lambda: dispatch(q, k, v, mask))
    back = Stopwatch(q.device)
    out = exchange.back(out)
    back.stop()
    runtime.note_exchange(exchange.sent, watch, back)
    return out


def _mask_of_all(mask: torch.Tensor | None, here: int, exchange: Exchange) -> torch.Tensor | None:
    """A mask for all tokens and this rank's heads. One that is for all tokens already was made of whole arguments,
    and is in their order.
    """
    if mask is None:
        return None
    mask = four(mask)
    return exchange.key_mask(mask) if mask.shape[-1] == here else exchange.heads.of(mask, 1)
