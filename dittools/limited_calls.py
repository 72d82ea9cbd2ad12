"""Pieces of a call whose queries do not all see the same keys, as `dittools.visibility` found it.

A piece has the queries of one grid that see the same keys of that grid, and every key that all of them see: frames of
before, whose own queries are in another piece, are keys alone. Text whose own rows are others, and what only some of
its queries see, is added beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from dittools.masks import Beside, KeyBias
from dittools.query_rows import QueryRows
from dittools.sequence import KindOfTokens, SeenBeside, SubCall, placed_in
from dittools.tokens import Part, TokenGrid, arranged, placed
from dittools.visibility import Limit, Run, limits_of


def limited_calls(parts: Sequence[Part], mask: torch.Tensor, device: torch.device) -> list[SubCall] | None:
    """Cut a call with a mask of pairs into pieces; None where grids see no whole frames, or not themselves.

    Args:
        parts: of the sequence, in its order.
        mask: what PyTorch's attention takes for ``[B, H, S, S]`` logits.
        device: where indices go.
    """
    limits = limits_of(mask, parts)
    if limits is None:
        return None
    alike: list[tuple[Limit, list[int]]] = []
    for sample, limit in enumerate(limits):
        group = next((members for other, members in alike if other.same(limit)), None)
        if group is None:
            alike.append((limit, [sample]))
        else:
            group.append(sample)
    found = []
    for limit, members in alike:
        samples = None if len(alike) == 1 else torch.tensor(members, device=device)
        pieces = _pieces(parts, limit, samples, device)
        if pieces is None:
            return None
        found += pieces
    return found


def hides_grid(parts: Sequence[Part], found: KeyBias | None) -> bool:
    """Whether a mask hides any of a grid from the picture: its own queries may then see what the picture does not."""
    return found is not None and any(
        part.shape is not None and bool(found.bias[:, at].isinf().any()) for part, at in placed(parts)
    )


def _pieces(parts: Sequence[Part], limit: Limit, samples: torch.Tensor | None, device) -> list[SubCall] | None:
    """The pieces of samples that see alike; the first of them has the rows that none has."""
    found, left = [], torch.ones(sum(part.tokens for part in parts), dtype=torch.bool)
    for runs in _groups(parts, limit.runs):
        made = _piece(parts, limit, runs, samples, device)
        if made is None:
            if any(part.kind == "picture" and at.start <= runs[0].start < at.stop for part, at in placed(parts)):
                return None
            continue  # computed densely
        piece, tokens = made
        left[tokens] = False
        found.append(piece)
    rest = left.nonzero().flatten()
    if len(rest):
        seen = torch.stack([run.bias.isfinite() for run in limit.runs]).any(0)  # others are padding
        more = found[0].more + int(limit.others[(left & seen)[limit.places]].isfinite().sum())
        more += sum(
            int(run.bias.isfinite().sum()) * int((left & seen)[run.start : run.stop].sum()) for run in limit.runs
        )
        found[0] = found[0]._replace(rest=rest.to(device), more=more)
    return found


def _groups(parts: Sequence[Part], runs: Iterable[Run]) -> list[list[Run]]:
    """Runs whose queries are of one piece: those that see the same keys, or the same ones of their own grid."""
    found: list[tuple[list[Run], slice | None]] = []
    for run in runs:
        at = next(at for part, at in placed(parts) if at.start <= run.start < at.stop)
        for group, own in found:
            one = group[0]
            if torch.equal(one.bias, run.bias) or (own == at and torch.equal(one.bias[at], run.bias[at])):
                group.append(run)
                break
        else:
            found.append(([run], at))
    return [group for group, _ in found]


def _piece(
    parts: Sequence[Part], limit: Limit, runs: list[Run], samples: torch.Tensor | None, device
) -> tuple[SubCall, torch.Tensor] | None:
    """The piece of some runs, and the tokens whose queries it has."""
    bias = torch.stack([run.bias for run in runs])
    seen = (bias == 0).all(0)  # by all of them: the keys of the piece
    own = torch.zeros_like(seen)
    for run in runs:
        own[run.start : run.stop] = True
    if all(torch.equal(row, bias[0]) for row in bias[1:]):  # then tokens of no grid may see as they do
        alike = (limit.others == bias[0]).all(-1) & seen[limit.places]
        own[limit.places[alike]] = True
    cut = _cut(parts, seen, own)
    if cut is None:
        return None
    grid, kept = cut
    kinds = KindOfTokens(parts)
    beside = [_beside(kinds, seen.clone().index_fill_(0, kept, False), torch.zeros(len(seen)), None, device)]
    for run, row in zip(runs, bias, strict=True):
        rows = ((kept >= run.start) & (kept < run.stop)).nonzero().flatten()
        beside.append(_beside(kinds, row.isfinite() & ~seen, row, rows.to(device), device))
    flags = own[kept]
    piece = SubCall(
        grid,
        samples,
        placed_in(kept, len(seen), device),
        beside=tuple(one for one in beside if one is not None),
        queries=None if flags.all() else placed_in(kept[flags], len(seen), device),
        own=None if flags.all() else QueryRows(flags, device),
    )
    return piece, own.nonzero().flatten()


def _beside(
    kinds: KindOfTokens, shown: torch.Tensor, bias: torch.Tensor, rows: torch.Tensor | None, device
) -> SeenBeside | None:
    """Tokens that are ``shown``, bool ``[S]``, beside a piece; None where there are none."""
    tokens = shown.nonzero().flatten()
    if not len(tokens):
        return None
    added = bias[tokens].to(device) if bias[tokens].any() else None
    return SeenBeside(Beside(tokens.to(device), added), None, kinds.counted(tokens), rows)


def _cut(parts: Sequence[Part], seen: torch.Tensor, own: torch.Tensor) -> tuple[TokenGrid, torch.Tensor] | None:
    """The grid of what a piece takes, and its tokens in the sequence: its own, and grids that are seen.

    None where its own are no whole frames.
    """
    found: list[tuple[Part, torch.Tensor]] = []
    for part, at in placed(parts):
        tokens = at.start + (seen & own if part.shape is None else seen)[at].nonzero().flatten()
        if part.shape is None:
            if len(tokens):
                found.append((Part(part.kind, len(tokens)), tokens))
            continue
        apart = (tokens.diff() != 1) | (own[tokens[1:]] != own[tokens[:-1]])
        for run in tokens.tensor_split(apart.nonzero().flatten() + 1) if len(tokens) else ():
            mine, shape = bool(own[run[0]]), _frames_of(part, run - at.start)
            if mine and shape is None:
                return None
            if shape is not None:
                kind = "history" if part.kind == "picture" and not mine else part.kind
                found.append((Part(kind, len(run), shape), run))
    mine = [number for number, (part, run) in enumerate(found) if part.shape is not None and own[run[0]]]
    picture = max(mine, key=lambda number: (found[number][0].kind == "picture", found[number][0].tokens))
    listed = [replace(part, kind=_kind(part.kind, number == picture)) for number, (part, _) in enumerate(found)]
    grid, order = arranged(listed)
    return grid, torch.cat([found[number][1] for number in order])


def _kind(kind: str, picture: bool) -> str:
    """What a part is in a piece, whose picture is one of its own grids."""
    return "picture" if picture else "reference" if kind == "picture" else kind


def _frames_of(part: Part, tokens: torch.Tensor) -> tuple[int, int, int] | None:
    """The grid of tokens of a part that are side by side, where they are whole frames."""
    _, height, width = part.shape
    frame, count = height * width, len(tokens)
    return None if int(tokens[0]) % frame or count % frame else (count // frame, height, width)
