"""Which tokens of an attention call a sparse call can take, in the order of a `TokenGrid`.

A method knows a picture with text on one side. What a model's sequence has beyond that is brought to that form
here, exactly: keys hidden by a padding mask are left out, and tokens on both sides of the picture are taken
behind it. Attention does not mind the order of its tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.tokens import Layout, TokenGrid

# In fp32 a weight this far below the largest is 0; masks written as numbers use -10000 or less.
_HIDDEN = -1000.0


class Piece(NamedTuple):
    """Samples of a batch that one sparse call takes, and which of their tokens.

    Args:
        grid: layout of the tokens taken.
        samples: int64 ``[b]`` indices; None is the whole batch.
        tokens: a slice of the sequence, or int64 ``[grid.tokens]``: grid order -> sequence.
        rest: int64 ``[n]``, hidden tokens: their rows are computed densely.
    """

    grid: TokenGrid
    samples: torch.Tensor | None
    tokens: slice | torch.Tensor
    rest: torch.Tensor | None = None

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

    def put(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """Write what was computed of `take` to its place in ``[B, S, H, D]``."""
        samples = slice(None) if self.samples is None else self.samples
        if isinstance(samples, torch.Tensor) and isinstance(self.tokens, torch.Tensor):
            samples = samples[:, None]
        out[samples, self.tokens] = part

    def put_rest(self, q, k, v, mask: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """Rows of hidden tokens, as the model's own attention computes them."""
        samples = slice(None) if self.samples is None else self.samples
        rows = q[samples].index_select(1, self.rest)
        mask = _four(mask).expand(q.shape[0], -1, -1, -1)[samples]
        mask = mask if mask.shape[2] == 1 else mask.index_select(2, self.rest)
        rows, keys, values = (x.transpose(1, 2) for x in (rows, k[samples], v[samples]))
        part = torch.nn.functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        where = samples if isinstance(samples, slice) else samples[:, None]
        out[where, self.rest] = part.transpose(1, 2)


def shown_keys(mask: torch.Tensor, batch: int, tokens: int) -> torch.Tensor | str:
    """Which keys a padding mask shows: bool ``[batch, tokens]`` on the CPU; or why it is no padding mask.

    Waits for the device. Rows of hidden tokens may hold anything.

    Args:
        mask: what PyTorch's attention takes for ``[B, H, S, S]`` logits: bool, or numbers to add.
    """
    mask = _four(mask)
    if mask.dtype != torch.bool:
        if (mask == mask.flatten()[0]).all() and mask.flatten()[0] > _HIDDEN:
            return torch.ones(batch, tokens, dtype=torch.bool)  # the same added to every logit changes nothing
        if not ((mask == 0) | (mask <= _HIDDEN)).all():
            return "the call has an attention mask that adds a bias"
        mask = mask == 0
    if mask.shape[-1] not in (1, tokens) or mask.shape[2] not in (1, tokens):
        return f"the call has an attention mask of {list(mask.shape)} for {tokens} tokens"
    # A key that any row sees is shown; then every shown row has to see all of them.
    shown = mask.any(2).any(1).expand(-1, tokens)  # [B or 1, S]
    if mask.shape[2] > 1 or mask.shape[1] > 1:
        differs = (mask != shown[:, None, None]).any(-1)  # [B or 1, H or 1, S or 1]
        rows = shown[:, None] if mask.shape[2] > 1 else shown.any(-1)[:, None, None]
        if (differs & rows).any():
            return "the call has an attention mask that is no padding: it hides keys from some rows only"
    return shown.expand(batch, -1).cpu()


def pieces(layout: Layout, tokens: int, shown: torch.Tensor | None, device: torch.device) -> list[Piece] | str:
    """Cut a call of this many tokens into pieces; or say why it cannot be done.

    Args:
        layout: where the picture is.
        shown: as from `shown_keys`; None shows all.
        device: where indices go.

    Raises:
        ValueError: when the picture does not fit into the sequence.
    """
    before, after = layout.around(tokens)
    if shown is None or bool(shown.all()):
        grid = layout.grid(before, after)
        if not (before and after):
            return [Piece(grid, None, slice(None))]
        return [Piece(grid, None, torch.arange(before, before + tokens, device=device) % tokens)]
    if not shown[:, before : tokens - after].all():
        return "the call has an attention mask that hides tokens of the picture"
    rows, which = torch.unique(shown, dim=0, return_inverse=True)
    found = []
    for index, row in enumerate(rows):
        samples = None if len(rows) == 1 else (which == index).nonzero().flatten().to(device)
        left, right = int(row[:before].sum()), int(row[tokens - after :].sum()) if after else 0
        kept = row.nonzero().flatten()
        if left and right:
            kept = kept.roll(-left)
        count = len(kept)
        start = int(kept[0])
        run = torch.equal(kept, torch.arange(start, start + count))
        where = slice(start, start + count) if run else kept.to(device)
        rest = (~row).nonzero().flatten().to(device) if count < tokens else None
        found.append(Piece(layout.grid(left, right), samples, where, rest))
    return found


def _four(mask: torch.Tensor) -> torch.Tensor:
    return mask.view((1,) * (4 - mask.ndim) + tuple(mask.shape))
