"""Reuses whole calls of one transformer: asks the run's cache before each, and keeps what computed ones give.

diffusers' own caches hang a hook on every block, and need each block's class in a table, a context opened by the
pipeline, and the hooks removed in the reverse order. Here nothing is on the blocks but for a cache that watches the
first one, or carries over what all of them add.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from dittools.pipelines import signals
from dittools.pipelines.call_interceptor import CallInterceptor
from dittools.pipelines.errors import BadInput
from dittools.pipelines.family import Family
from dittools.pipelines.other_caches import other_cache
from dittools.pipelines.parallel.cfg import shared
from dittools.ranks import stretches
from dittools.run import Run
from dittools.runtime import Runtime

if TYPE_CHECKING:
    from dittools.pipelines.root_hook import RootHook
    from dittools.tokens import Layout


class _Reused(BaseException):
    """Leaves a forward whose output is reused; no `except Exception` on the way may stop it."""


class StepReuse:
    """Answers the calls of one transformer.

    | `StepCache.begin` says | the forward                                                   | ends with               |
    |------------------------|---------------------------------------------------------------|-------------------------|
    | True: compute          | runs                                                          | `StepCache.update`      |
    | False: reuse           | does not run; with reuse "stack" it runs without its blocks   | `predict`, `end_reused` |
    | None: undecided        | runs to the first block, where `StepCache.watch` decides: on  | as True, or as False    |
    |                        | it goes, or `_Reused` leaves it                               |                         |
    | (an error is raised)   | stops                                                         | `Runtime.fail`          |

    Args:
        model: the transformer.
        family: which modules are its blocks, and what they give.
        hook: reads the arguments of a call, and tells the runtime of it.
        runtime: whose run has the cache.

    Raises:
        BadInput: when the cache cannot work on this transformer.
    """

    def __init__(self, model: torch.nn.Module, family: Family, hook: RootHook, runtime: Runtime):
        attention = dict(family.attention_in(model))
        blocks = blocks_of(model, attention)
        self._inside = [*blocks, *attention.values()]
        if other := other_cache(model, self._inside):
            raise BadInput(
                f"diffusers' own cache is on ({other}), and two would each reuse what the other did: "
                "disable_cache() first"
            )
        self._model, self._family, self._hook = model, family, hook
        self._runtime, self._layers = runtime, len(attention)
        self._root = CallInterceptor(model, self._call)
        self._undecided = self._skips_blocks = False
        # What makes an output of tensors, by run and by the form of the call.
        self._forms: weakref.WeakKeyDictionary[Run, dict[Hashable, Callable[[list[torch.Tensor]], Any]]]
        self._forms = weakref.WeakKeyDictionary()
        self._into: torch.Tensor | None = None  # of the first block
        self._added: torch.Tensor | None = None  # by all blocks
        self._stack = getattr(runtime.cache, "reuse", "") == "stack"
        if self._stack:
            _check_stack(family, blocks, attention)
        # A profile may make of any cache that has one a cache that watches the first block.
        watches = runtime.cache.signal_source.startswith("block") or hasattr(runtime.cache, "profile")
        self._first_block = blocks[0]
        self._on_blocks = [CallInterceptor(blocks[0], self._first)] if watches or self._stack else []
        if self._stack:
            self._on_blocks += [CallInterceptor(block, self._middle) for block in blocks[1:-1]]
            self._on_blocks.append(CallInterceptor(blocks[-1], self._final))

    def install(self, undo: ExitStack) -> None:
        """Stand in front of the transformer's calls; ``undo`` takes what ends that."""
        for one in (self._root, *self._on_blocks):
            one.ensure()
            undo.callback(one.remove)

    def ensure(self) -> None:
        """Take the place again that `Module.compile` may have taken."""
        for one in (self._root, *self._on_blocks):
            one.ensure()

    def _call(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        hook, runtime = self._hook, self._runtime
        if hook.rerunning:
            return inner(*args, **kwargs)
        self.ensure()
        named = hook.named(args, kwargs)
        latents, form = self._latents(named), call_form(named)
        shape = bool(named.get("return_dict", True)), form
        other = other_cache(self._model, self._inside)

        def why(run: Run) -> str | None:
            if other or torch.is_grad_enabled():
                return "diffusers' own cache is on" if other else "gradients are enabled"
            return None if shape in self._forms.get(run, ()) else "an output of this form was not seen yet"

        if self._stack and shared(self._model):
            raise BadInput("reuse=stack holds what blocks add where they ran, and guidance is shared: use reuse=output")
        verdict = hook.begin(named, why, latents, form)
        if other:
            runtime.run.notes[
                f"diffusers' own cache is on ({other}): {runtime.cache.name} reuses nothing beside it; "
                "disable_cache() first"
            ] = None
        self._undecided = verdict is None
        hook.announced = True
        try:
            if verdict is False:
                return self._reused(inner, args, kwargs, latents, shape)
            present = runtime.run.reuse.present
            output, elsewhere = hook.guided.compute(inner, args, kwargs, named)
        except _Reused:
            hook.announced = False
            return self._reused(inner, args, kwargs, latents, shape)
        except BaseException:
            self._into = self._added = None
            runtime.fail()
            raise
        finally:
            hook.announced = self._undecided = False
        tensors, again = taken_apart(output, latents, _leaves(named))
        self._forms.setdefault(runtime.run, {})[shape] = again
        if elsewhere is not None:
            reuse = runtime.run.reuse
            elsewhere.then(lambda found: reuse.catch_up(present, latents, taken_apart(found, latents)[0]))
        elif not torch.is_grad_enabled():
            runtime.run.reuse.update(latents, [self._added] if self._stack else tensors)
        self._into = self._added = None
        return output

    def _reused(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any], latents: Any, shape: Any) -> Any:
        found = self._runtime.run.reuse.predict(latents)
        if not self._stack:
            output = self._forms[self._runtime.run][shape](found, _leaves(self._hook.named(args, kwargs)))
        else:
            self._added, self._skips_blocks, self._hook.rerunning = found[0], True, True
            try:
                output = inner(*args, **kwargs)
            finally:
                self._added, self._skips_blocks, self._hook.rerunning = None, False, False
        self._into = None
        self._runtime.end_reused()
        return output

    def _latents(self, named: dict[str, Any]) -> list[torch.Tensor]:
        """What the transformer is given to denoise, in the order of what it gives: pictures, then sound."""
        given = named.get(self._family.latents)
        others = tree_flatten([named.get(name) for name in self._family.latents_beside])[0]
        others = [tensor for tensor in others if isinstance(tensor, torch.Tensor)]
        several = isinstance(given, (list, tuple))
        return [*(given if several and others else together(given) if several else [given]), *others]

    # On blocks, where a cache watches the first one or carries over what all of them add

    def _first(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        hidden = signals.first_tensor(args, kwargs, self._family.block_input)
        self._into = hidden if self._stack else None
        if self._skips_blocks:
            return hidden
        reuse, self._undecided = (self._runtime.run.reuse if self._undecided else None), False
        shared = getattr(self._model, "_parallel_config", None) is not None
        if reuse is not None and shared and self._runtime.ranks.alone:
            # Nobody knows who has the other tokens, and ranks that decide differently wait for each other for ever.
            reuse.watch(None)
            self._runtime.decided()
            reuse = None
        if reuse is not None and reuse.signal_source == "block_input":
            seen = signals.modulated_input(self._first_block, args, kwargs)
            computes = reuse.watch(None if seen is None else self._picture(seen))
            self._runtime.decided()
            if not computes:
                raise _Reused
            reuse = None
        output = inner(*args, **kwargs)
        if reuse is not None:
            place = self._family.block_output
            given = output if place is None else output[place]
            computes = reuse.watch(self._picture(given - self._as(hidden, given)))
            self._runtime.decided()
            if not computes:
                raise _Reused
        return output

    def _as(self, into: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """What went into a block as what came out: a plan may have split it among ranks at the block's door."""
        ranks, count = self._runtime.ranks, self._tokens()
        if ranks.alone or into.shape == out.shape or into.shape[1] != count:
            return into
        return into[:, slice(*stretches(count, ranks.size)[ranks.rank])]

    def _whole(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens of all ranks, where these are one's own."""
        ranks, count = self._runtime.ranks, self._tokens()
        if ranks.alone or count is None:
            return tokens
        shares = [stop - start for start, stop in stretches(count, ranks.size)]
        if tokens.shape[1] != shares[ranks.rank] or tokens.shape[1] == count:
            return tokens
        padded = torch.nn.functional.pad(tokens, (0, 0, 0, max(shares) - tokens.shape[1]))
        parts = ranks.gather(padded)
        return torch.cat([part[:, :share] for part, share in zip(parts, shares, strict=True)], 1)

    def _tokens(self) -> int | None:
        """Tokens of a whole block beside text; None where that is not known."""
        layout = self._hook.layout
        if layout is None:
            return None
        parts = layout.parts
        return sum(part.tokens or 0 for part, apart in zip(parts, layout.apart(parts), strict=True) if not apart)

    def _picture(self, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens of the picture that is drawn, ``[B, S, width]``, of those in a block of all ranks."""
        tokens = tokens[None] if tokens.ndim == 2 else tokens  # a packed sequence has no batch
        tokens = self._whole(tokens.transpose(0, 1) if self._family.tokens_first else tokens)
        branches = self._hook.branches
        if branches is not None and branches.halves:
            self._runtime.note_sent(tokens.nbytes)
            tokens = torch.cat(branches.pair.gather(tokens))
        at = picture_in(self._hook.layout, tokens.shape[1])
        return tokens if at is None else tokens[:, at]

    def _middle(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        return signals.first_tensor(args, kwargs) if self._skips_blocks else inner(*args, **kwargs)

    def _final(self, inner: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        if self._skips_blocks:
            # Whatever the model added between the blocks is in what they added already.
            return self._as(self._into, self._added) + self._added
        output = inner(*args, **kwargs)
        if self._into is not None:
            self._added = output - self._as(self._into, output)
        return output


def picture_in(layout: Layout | None, tokens: int) -> slice | None:
    """Where the picture is among so many tokens, with or without its text, or text and sound; None where that cannot be
    told.
    """
    if layout is None:
        return None
    for missing in ((), ("text",), ("text", "sound")):
        parts = [part for part in layout.parts if part.kind not in missing]
        if [part.tokens for part in parts].count(None) == 0 and sum(part.tokens for part in parts) == tokens:
            start = sum(part.tokens for part in parts[: [part.kind for part in parts].index("picture")])
            return slice(start, start + layout.picture)
    counts = [part.tokens for part in layout.parts]
    at = [part.kind for part in layout.parts].index("picture")
    ahead, count, behind = counts[:at], counts[at], sum(n or 0 for n in counts[at + 1 :])
    start = tokens - count - behind if None in ahead else sum(ahead)
    return slice(start, start + count) if 0 <= start <= tokens - count else None


def call_form(arguments: dict[str, Any]) -> Hashable:
    """What must be equal of two calls for one to be answered by the other: shapes of tensors, and plain settings."""
    plain = (bool, int, str, type(None))
    leaves = [(name, tree_flatten(value)[0]) for name, value in sorted(arguments.items()) if name != "return_dict"]
    return tuple(
        (name, *(tuple(x.shape) if isinstance(x, torch.Tensor) else x if isinstance(x, plain) else ... for x in found))
        for name, found in leaves
    )


def together(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A list of pictures as one batch where they are of one size, as they are otherwise."""
    same = all(isinstance(t, torch.Tensor) and t.shape == tensors[0].shape for t in tensors)
    return [torch.stack(list(tensors))] if same and len(tensors) else list(tensors)


def blocks_of(model: torch.nn.Module, paths: Iterable[str]) -> list[torch.nn.Module]:
    """The block each self-attention is in, by its path up to the first number, each once."""
    found: dict[str, torch.nn.Module] = {}
    for path in paths:
        parts = path.split(".")
        end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
        name = ".".join(parts[: end + 1])
        found.setdefault(name, model.get_submodule(name))
    return list(found.values())


def _check_stack(family: Family, blocks: Sequence[torch.nn.Module], paths: Iterable[str]) -> None:
    if len(blocks) < 2:
        raise BadInput("reuse=stack needs a transformer of at least two blocks: use reuse=output")
    lists = {path.split(".")[0] for path in paths}
    if len(lists) > 1:
        raise BadInput(
            f"reuse=stack works on one list of blocks, and this model has {', '.join(sorted(lists))}: use output"
        )
    if family.block_output is not None:
        raise BadInput(
            f"reuse=stack works on blocks that pass one tensor, and those of {family.name} pass more: use output"
        )


def _leaves(arguments: dict[str, Any]) -> list[Any]:
    return [leaf for _, value in sorted(arguments.items()) for leaf in tree_flatten(value)[0]]


def taken_apart(
    output: Any, latents: Sequence[torch.Tensor] = (), given: Sequence[Any] = ()
) -> tuple[list[torch.Tensor], Callable[..., Any]]:
    """The tensors of a transformer's output, and what makes such an output of others.

    latents: what went in; where a list of pictures was brought together in the first, those given are too.
    given: all that went in: what comes out as it went in, such as kept keys, is taken from the arguments of each call.
    """
    leaves, form = tree_flatten(output)
    went_in = {id(leaf): i for i, leaf in enumerate(given) if isinstance(leaf, torch.Tensor)}
    passed = {i: went_in[id(leaf)] for i, leaf in enumerate(leaves) if id(leaf) in went_in}
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor) and i not in passed]
    shell = [None if i in places or i in passed else leaf for i, leaf in enumerate(leaves)]
    tensors = [leaves[i] for i in places]
    batch = len(latents) == 1 and [t.ndim + 1 for t in tensors] == [latents[0].ndim] * len(latents[0])

    def again(found: list[torch.Tensor], given: Sequence[Any] = ()) -> Any:
        filled = list(shell)
        for place, i in passed.items():
            filled[place] = given[i]
        for place, tensor in zip(places, found[0].unbind() if batch else found, strict=True):
            filled[place] = tensor
        return tree_unflatten(filled, form)

    return together(tensors) if batch else tensors, again
