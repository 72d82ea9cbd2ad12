"""Which tokens of an attention call a sparse call can take, in the order of a `TokenGrid`.

A method knows a picture with references behind it and text on one side of them. What a model's sequence has beyond
that is brought to that form here, exactly: keys hidden by a padding mask are left out, those that a mask favours less
are added afterwards, and history in front of the picture and text on both sides are taken behind it. Attention does not
mind the order of its tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.masks import Beside, four
from dittools.tokens import Layout, Part, TokenGrid, arranged


class SubCall(NamedTuple):
    """Samples of a batch that one sparse call takes, and which of their tokens.

    Args:
        grid: layout of the tokens taken.
        samples: int64 ``[b]`` indices; None is the whole batch.
        tokens: a slice of the sequence, or int64 ``[grid.tokens]``: grid order -> sequence.
        rest: int64 ``[n]``, tokens that are not taken: their rows are computed densely.
        beside: those of them that the taken ones see, if not as they see each other.
    """

    grid: TokenGrid
    samples: torch.Tensor | None
    tokens: slice | torch.Tensor
    rest: torch.Tensor | None = None
    beside: Beside | None = None

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens of this piece: ``[B, S, H, D]`` -> ``[b, grid.tokens, H, D]``."""
        if self.whole:
            return x
        x = x if self.samples is None else x.index_select(0, self.samples)
        return x[:, self.tokens] if isinstance(self.tokens, slice) else x.index_select(1, self.tokens)

    @property
    def whole(self) -> bool:
        """Whether it is the call as it stands."""
        return self.samples is None and isinstance(self.tokens, slice) and self.tokens == slice(None)

    def scatter(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """Write what was computed of `take` to its place in ``[B, S, H, D]``."""
        samples = slice(None) if self.samples is None else self.samples
        if isinstance(samples, torch.Tensor) and isinstance(self.tokens, torch.Tensor):
            samples = samples[:, None]
        out[samples, self.tokens] = part

    def join(self, part: torch.Tensor, lse: torch.Tensor, q, k, v, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp that a sparse call gave for `take`, with the keys beside it."""
        samples = slice(None) if self.samples is None else self.samples
        return self.beside.join(part, lse, q, k, v, samples, scale)

    def scatter_rest(self, q, k, v, mask: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """Rows of tokens that are not taken, as the model's own attention computes them."""
        samples = slice(None) if self.samples is None else self.samples
        rows = q[samples].index_select(1, self.rest)
        mask = four(mask).expand(q.shape[0], -1, -1, -1)[samples]
        mask = mask if mask.shape[2] == 1 else mask.index_select(2, self.rest)
        rows, keys, values = (x.transpose(1, 2) for x in (rows, k[samples], v[samples]))
        part = torch.nn.functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        where = samples if isinstance(samples, slice) else samples[:, None]
        out[where, self.rest] = part.transpose(1, 2)


def sub_calls(layout: Layout, tokens: int, bias: torch.Tensor | None, device: torch.device) -> list[SubCall] | str:
    """Cut a call of this many tokens into pieces; or say why it cannot be done.

    Args:
        layout: where the picture is.
        bias: as from `masks.key_bias`; None adds nothing.
        device: where indices go.

    Raises:
        ValueError: when the picture does not fit into the sequence.
    """
    parts = layout.parts_of(tokens)
    if bias is None or not bias.any():
        return [_piece(parts, torch.zeros(tokens), None, device)]
    start = layout.picture_start(tokens)
    inside = bias[:, start : start + layout.picture]
    if inside.any():
        does = "hides" if inside.isinf().any() else "adds a bias to"
        return f"the call has an attention mask that {does} tokens of the picture"
    rows, which = torch.unique(bias, dim=0, return_inverse=True)
    found = []
    for index, row in enumerate(rows):
        samples = None if len(rows) == 1 else (which == index).nonzero().flatten().to(device)
        found.append(_piece(parts, row, samples, device))
    return found


def _piece(parts: list[Part], row: torch.Tensor, samples: torch.Tensor | None, device: torch.device) -> SubCall:
    """The piece of samples to whose keys ``row``, fp32 ``[S]``, is added. A reference that misses tokens is no
    grid any more.
    """
    taken = row == 0
    left, seen, start = [], [], 0
    for part in parts:
        at = start + taken[start : start + part.tokens].nonzero().flatten()
        start += part.tokens
        if len(at):  # what is hidden whole is no part
            left.append(part if len(at) == part.tokens else Part(part.kind, len(at)))
            seen.append(at)
    grid, order = arranged(left)
    kept = torch.cat([seen[number] for number in order])
    first, count = int(kept[0]), len(kept)
    if torch.equal(kept, torch.arange(first, first + count)):
        where = slice(None) if count == len(row) else slice(first, first + count)
    else:
        where = kept.to(device)
    rest = (~taken).nonzero().flatten().to(device) if count < len(row) else None
    shown = (~taken & row.isfinite()).nonzero().flatten()
    beside = Beside(shown.to(device), row[shown].to(device)) if len(shown) else None
    return SubCall(grid, samples, where, rest, beside)
