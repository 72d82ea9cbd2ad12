"""Which keys the queries of a call see where they are not the same for all: causal frames, segments, a prefix.

Such a mask is a limit that any method plans under: the call is cut into pieces of queries that see the same keys, and a
piece holds these queries and those keys alone. So no pair beyond the limit is planned, counted or computed, to the
token, whatever blocks a method makes of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from dittools.masks import four, less_than_own
from dittools.tokens import Part, placed

ROWS = 1024
"""Rows of a mask that are compared at once."""
MOST = 256
"""Runs beyond which a mask has no blocks that are worth a call of their own."""


class Run(NamedTuple):
    """Queries side by side that see the same keys.

    Args:
        start, stop: their tokens in the sequence.
        bias: fp32 ``[S]`` on the CPU, what is added to the logit of each key: 0, -inf where it is hidden.
    """

    start: int
    stop: int
    bias: torch.Tensor


class Limit(NamedTuple):
    """What the queries of one sequence see.

    Args:
        runs: of the tokens that are in grids, in the order of the sequence; of the picture at least.
        others: fp32 ``[n, S]`` on the CPU, the rows of all other tokens.
        places: int64 ``[n]``, where these are.
    """

    runs: tuple[Run, ...]
    others: torch.Tensor
    places: torch.Tensor

    def same(self, other: Limit) -> bool:
        """Whether two sequences see alike."""
        mine, theirs = ([run[:2] for run in limit.runs] for limit in (self, other))
        return (
            mine == theirs
            and torch.equal(self.others, other.others)
            and all(torch.equal(a.bias, b.bias) for a, b in zip(self.runs, other.runs, strict=True))
        )


def limits_of(mask: torch.Tensor, parts: Sequence[Part]) -> list[Limit] | None:
    """The limit of each sample of a mask; None where it says more than what queries see. Waits for the device.

    Args:
        mask: what PyTorch's attention takes for ``[B, H, S, S]`` logits: bool, or numbers to add.
        parts: of the sequence, in its order.
    """
    mask, tokens = four(mask), sum(part.tokens for part in parts)
    if tuple(mask.shape[2:]) != (tokens, tokens) or any(
        (mask[:, :1, rows] != mask[:, 1:, rows]).any() for rows in _chunks(0, tokens) if mask.shape[1] > 1
    ):
        return None
    found = []
    for sample in mask[:, 0]:
        limit = _limit_of(sample, parts)
        if limit is None:
            return None
        found.append(limit)
    return found


def _limit_of(mask: torch.Tensor, parts: Sequence[Part]) -> Limit | None:
    """The limit of one sample's mask ``[S, S]``; None where the picture has no runs. Another grid without is none."""
    runs, outside = [], torch.ones(len(mask), dtype=torch.bool)
    for part, at in placed(parts):
        if part.shape is None:
            continue
        found = _runs_of(mask, at)
        if found is None and part.kind == "picture":
            return None
        if found is not None:
            outside[at] = False
            runs += found
    places = outside.nonzero().flatten()
    others = torch.zeros(len(places), len(mask))
    for rows in _chunks(0, len(places)):
        tokens = places[rows].to(mask.device)
        others[rows] = _numbers(mask.index_select(0, tokens), tokens).cpu()
    return Limit(tuple(runs), others, places)


def _runs_of(mask: torch.Tensor, at: slice) -> list[Run] | None:
    """The runs of a grid in one sample's mask; None where they are too many, or do not see themselves."""
    starts = [at.start]
    for rows in _chunks(at.start, at.stop):
        bias = _bias(mask, rows.start, min(rows.stop + 1, at.stop))
        if bias is None:
            return None
        changes = (bias[1:] != bias[:-1]).any(-1).nonzero().flatten()
        starts += (changes + rows.start + 1).tolist()
        if len(starts) > MOST:
            return None
    stops = [*starts[1:], at.stop]
    return [Run(*ends, _bias(mask, ends[0], ends[0] + 1)[0].cpu()) for ends in zip(starts, stops, strict=True)]


def _chunks(start: int, stop: int) -> Iterator[slice]:
    return (slice(at, min(at + ROWS, stop)) for at in range(start, stop, ROWS))


def _bias(mask: torch.Tensor, start: int, stop: int) -> torch.Tensor | None:
    """Rows of a mask as numbers, fp32 ``[rows, S]``; None where one of them does not see itself."""
    tokens = torch.arange(start, stop, device=mask.device)
    found = _numbers(mask[start:stop], tokens)
    return None if (found.gather(1, tokens[:, None]) != 0).any() else found


def _numbers(rows: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Rows of these tokens as numbers, against that of their own key, -inf where a key is hidden."""
    if rows.dtype == torch.bool:
        return torch.zeros(rows.shape, device=rows.device).masked_fill(~rows, -torch.inf)
    return less_than_own(rows, rows.gather(1, tokens[:, None]))
