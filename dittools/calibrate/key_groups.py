"""Errors of candidates that keep or drop keys in groups: blocks, tiles, frames.

What each group adds to the output of a sampled query is found once. A candidate is then a sum over groups, where a mask
over tokens would be one more pass over all keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from dittools.observer import AttentionEvent
from dittools.tokens import TokenGrid

# Largest working set of one chunk of heads; one head is the least.
CHUNK_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class KeyGroups:
    """All tokens in G groups of at most W.

    Args:
        tokens: int64 ``[G, W]``; what a short group lacks is token 0.
        live: bool ``[G, W]``, false where a short group lacks a token.
        of_token: int64 ``[S]``, the group of each token.
        text: bool ``[G]``, groups of text; none where groups may mix text and video.
    """

    tokens: torch.Tensor
    live: torch.Tensor
    of_token: torch.Tensor
    text: torch.Tensor

    @classmethod
    def of(cls, of_token: torch.Tensor, device: torch.device | str) -> KeyGroups:
        """Groups by number: int64 ``[S]`` on the CPU, of which none from 0 to the largest is missing."""
        size = of_token.bincount()  # [G]
        by_group = of_token.argsort(stable=True)
        rank = torch.arange(len(of_token)) - (size.cumsum(0) - size)[of_token[by_group]]
        tokens = torch.zeros(len(size), int(size.max()), dtype=torch.long)
        tokens[of_token[by_group], rank] = by_group
        live = torch.arange(tokens.shape[1]) < size[:, None]
        text = torch.zeros(len(size), dtype=torch.bool)
        return cls(*(x.to(device) for x in (tokens, live, of_token, text)))

    @classmethod
    def of_video(cls, number: torch.Tensor, grid: TokenGrid, device: torch.device | str) -> KeyGroups:
        """Groups of video tokens by number, int64 ``[video]``; text and references are cut into groups of their own
        behind them, none longer than theirs, which count as text.
        """
        size = number.bincount()
        of_token = torch.empty(grid.tokens, dtype=torch.long)
        others = torch.ones(grid.tokens, dtype=torch.bool)
        others[grid.video_slice] = False
        of_token[grid.video_slice] = number
        of_token[others] = len(size) + torch.arange(grid.tokens - grid.video) // int(size.max())
        groups = cls.of(of_token, device)
        groups.text[len(size) :] = True
        return groups

    @property
    def sizes(self) -> torch.Tensor:
        """Tokens in each group: int64 ``[G]``."""
        return self.live.sum(1)


def errors_by_group(event: AttentionEvent, rows: torch.Tensor, groups: KeyGroups, kept: torch.Tensor) -> torch.Tensor:
    """Mean squared error that each candidate makes on sampled rows, against their dense output, in fp32.

    Args:
        rows: query tokens to look at, int64 ``[n]``, on the device of q.
        groups: of the keys.
        kept: bool ``[C, n, G]`` or, where heads differ, ``[H, C, n, G]``: the groups that each candidate keeps for each
            row. A row that keeps nothing gives zeros.

    Returns:
        fp32 ``[C, B, H]``: mean over rows and D. Nothing waits for the device, and besides a few numbers a row, group
        and head dim nothing is held; heads go in chunks of `CHUNK_BYTES`.
    """
    by_head = kept.ndim == 4
    kept = torch.cat((torch.ones_like(kept[..., :1, :, :]), kept), -3)  # the first candidate is dense
    found = []
    for heads, mass, out in _added(event, rows, groups, len(rows) * 4 * kept.shape[-3]):
        chosen = kept[heads] if by_head else kept
        lanes = "hcng" if by_head else "cng"
        chosen = chosen.float()
        # Text keys and the own block aside, fp32 may see no mass at all in what is kept.
        total = torch.einsum(f"{lanes},bhng->cbhn", chosen, mass).clamp_min(torch.finfo(torch.float32).tiny)
        given = torch.einsum(f"{lanes},bhgnd->cbhnd", chosen, out) / total[..., None]
        found.append((given[1:] - given[:1]).square().mean((-1, -2)))
    return torch.cat(found, -1)


def mass_by_group(event: AttentionEvent, rows: torch.Tensor, groups: KeyGroups) -> torch.Tensor:
    """What each group of keys holds of the softmax of these query rows: fp32 ``[H, G]``, summed over batches, rows."""
    parts = [
        _weights(event, heads, rows, groups).sum((0, 2, 4)) for heads in _chunks(event, rows, groups, 0)
    ]  # [h, G] each
    return torch.cat(parts)


def _added(
    event: AttentionEvent, rows: torch.Tensor, groups: KeyGroups, row_bytes: int
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """By chunks of heads: mass ``[B, h, n, G]`` and output ``[B, h, G, n, D]`` that each group adds to each row."""
    for heads in _chunks(event, rows, groups, row_bytes):
        weights = _weights(event, heads, rows, groups)
        v = _gathered(event.v, heads, groups.tokens.flatten()).unflatten(2, groups.tokens.shape)  # [B, h, G, W, D]
        yield heads, weights.sum(-1), weights.transpose(2, 3) @ v


def _weights(event: AttentionEvent, heads: slice, rows: torch.Tensor, groups: KeyGroups) -> torch.Tensor:
    """Softmax weights of the rows, fp32 ``[B, h, n, G, W]``; 0 where a group lacks a token."""
    q = _gathered(event.q, heads, rows) * event.scale
    k = _gathered(event.k, heads, groups.tokens.flatten())
    logits = (q @ k.transpose(2, 3)).masked_fill_(~groups.live.flatten(), -torch.inf)
    return logits.softmax(-1).unflatten(-1, groups.tokens.shape)


def _gathered(x: torch.Tensor, heads: slice, tokens: torch.Tensor) -> torch.Tensor:
    """fp32 ``[B, h, len(tokens), D]`` of ``[B, S, H, D]``."""
    return x[:, :, heads].transpose(1, 2).index_select(2, tokens).float()


def _chunks(event: AttentionEvent, rows: torch.Tensor, groups: KeyGroups, row_bytes: int) -> Iterator[slice]:
    """Runs of heads; ``row_bytes`` is what a caller takes for each group and head beside."""
    batches, _, heads, dim = event.q.shape
    count, width = groups.tokens.shape
    rows_taken = len(rows) * count * (3 * width + 2 * dim)  # logits, weights and their copy; outputs and their copy
    each = 4 * batches * (2 * count * width * dim + rows_taken) + batches * count * row_bytes
    step = max(1, min(heads, CHUNK_BYTES // each))
    return (slice(first, min(first + step, heads)) for first in range(0, heads, step))
