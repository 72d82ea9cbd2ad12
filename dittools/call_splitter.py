"""What sparse calls can take of one attention call, piece by piece, or why it runs dense."""

from __future__ import annotations

import torch

from dittools.call_info import AttentionInputs
from dittools.config import Config
from dittools.kernels.choice import implementations
from dittools.limited_calls import hides_grid, limited_calls
from dittools.masks import KeyBias, key_bias
from dittools.run import Run
from dittools.sequence import SubCall, sub_calls
from dittools.tokens import Layout, Part, TokenGrid


class CallSplitter:
    """Cuts the attention calls of one forward after the other; calls that are alike are cut once a forward.

    Args:
        config: what the user asked for.

    Attributes:
        layout: where the picture is in the calls of the present forward; None where its grid is not known.
    """

    def __init__(self, config: Config):
        self._config = config
        self.layout: Layout | None = None
        self._why_no_grid: str | None = None
        self._latest: tuple | None = None  # the latest mask and shape, and the pieces of such a call

    def begin(self, grid: TokenGrid | None, layout: Layout | None, why_no_grid: str | None) -> None:
        """A forward starts."""
        self.layout = layout or (None if grid is None else _layout_of(grid))
        self._why_no_grid = why_no_grid if grid is None else None
        self._latest = None

    def end(self) -> None:
        """The forward is over: let go of its mask."""
        self._latest = None

    def split(self, call: AttentionInputs, run: Run, step: int) -> list[SubCall] | str:
        """The pieces of a call, or the reason for which it runs dense."""
        reason = self._why_dense(call, run, step)
        if reason is not None:
            return reason
        about = (call.q.shape[:2], call.k.shape[1], call.q.device)
        if self._latest is None or self._latest[1] != about or not _same_mask(self._latest[0], call.mask):
            self._latest = (call.mask, about, *self._pieces(call, run))
        _, _, pieces, limited = self._latest
        if limited and call.shared is not None:
            return "queries see different keys, and ranks of a ring share the queries: use ulysses alone"
        return pieces

    def note_dense(self, problem: str, run: Run) -> str:
        """A reason for dense calls; noted where a method was asked for by name, which cannot take them."""
        if self._config.method not in ("auto", "dense"):
            run.notes[f"method {self._config.method} cannot take some calls, which ran dense: {problem}"] = None
        return problem

    def _why_dense(self, call: AttentionInputs, run: Run, step: int) -> str | None:
        q, keys = call.q, call.k.shape[1]
        if self._why_no_grid is not None:
            return self.note_dense(self._why_no_grid, run)
        if run.method is None:
            return run.why_dense
        if (step, call.layer) in run.dense_from:
            return "non-finite result"
        if not self.own_tokens(call) or q.shape[2] != call.k.shape[2]:
            return f"queries {list(q.shape[1:3])} and keys {list(call.k.shape[1:3])} differ in [tokens, heads]"
        problem = self._no_kernel(q, run)
        try:
            self.layout.parts_of(keys)
        except ValueError as error:
            problem = str(error)
        return problem and self.note_dense(problem, run)

    def own_tokens(self, call: AttentionInputs) -> bool:
        """Whether a call has as many queries as the keys of its layer have: one for each, but for parts without any."""
        queries, keys = call.q.shape[1], call.k.shape[1]
        if self.layout is None or all(part.queries for part in self.layout.parts):
            return queries == keys
        try:
            return queries == self.layout.queries_of(keys)
        except ValueError:
            return False

    def among_keys_alone(self, call: AttentionInputs) -> bool:
        """Whether a call is a model's own attention among tokens that give the picture keys alone."""
        tokens = 0 if self.layout is None else self.layout.keys_alone
        return tokens > 0 and call.q.shape[1] == call.k.shape[1] == tokens

    def _pieces(self, call: AttentionInputs, run: Run) -> tuple[list[SubCall] | str, bool]:
        """What sparse calls can take of every layer of this forward that has these tokens and this mask; and whether
        some of its tokens are keys alone in a piece.
        """
        keys, device = call.k.shape[1], call.q.device
        bias = None if call.mask is None else self._key_bias(call.mask, len(call.q), keys)
        found = bias if isinstance(bias, str) else sub_calls(self.layout, keys, bias, device)
        parts = self.layout.parts_of(keys)
        if call.mask is not None and (isinstance(found, str) or hides_grid(parts, bias)):
            found = limited_calls(parts, call.mask, device) or found
        if isinstance(found, str):
            return found, False
        shapes = [piece.grid.shape == run.grid.shape for piece in found]
        if run.profile is not None and not all(shapes):
            return "its mask cuts the picture into pieces, and a profile is for all of it", False
        # Text is first seen here where no argument tells it.
        whole = [piece.grid for piece, same in zip(found, shapes, strict=True) if same]
        run.grid = max(run.grid, *whole, key=lambda grid: grid.tokens) if whole else run.grid
        return found, any(piece.own is not None for piece in found) or not all(shapes)

    def _key_bias(self, mask: torch.Tensor, batch: int, keys: int) -> KeyBias | str:
        start, queries = self.layout.picture_start(keys), self.layout.queries_at(keys)
        queries = None if len(queries) == keys else queries
        return key_bias(mask, batch, keys, slice(start, start + self.layout.picture), queries)

    def _no_kernel(self, q: torch.Tensor, run: Run) -> str | None:
        kind = (q.device, q.dtype, q.shape[-1])
        if kind not in run.why_no_kernel:
            able = dict(implementations(*kind))
            # On a GPU the portable kernel is for those who ask: it has not been seen to beat dense there.
            name = "triton" if q.device.type == "cuda" and self._config.method == "auto" else "portable"
            run.why_no_kernel[kind] = f"no sparse kernel: {able[name]}" if able[name] else None
        return run.why_no_kernel[kind]


def _same_mask(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two calls have the same mask; some models make theirs anew in each layer."""
    if one is None or other is None:
        return one is other
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _layout_of(grid: TokenGrid) -> Layout:
    """The layout of calls that have exactly the tokens of the grid."""
    text = (Part("text", grid.text),) if grid.text else ()
    first = grid.text_position == "first"
    return Layout(*grid.shape, text if first else (), grid.parts if first else grid.parts + text)
