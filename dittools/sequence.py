"""Which tokens of an attention call a sparse call can take, in the order of a `TokenGrid`.

A method knows a picture with references behind it and text on one side of them. What a model's sequence has beyond
that is brought to that form here, exactly: keys hidden by a padding mask are left out, those that a mask favours less
are added afterwards, and history in front of the picture and text on both sides are taken behind it. Attention does not
mind the order of its tokens.

Keys without queries are added afterwards too (text that a picture attends to and that attends to nothing itself), and
so are those of text whose own rows a mask makes causal. Given queries that are dropped again they would cost as many
pairs of the picture with them, and in vain those of their own rows; a method would read queries that nobody made; and
texts of other lengths would cut a batch into pieces. So methods see the picture alone, and its budget is its own.
Keys alone that are a grid, such as frames of before, are in the sequence that a method plans for, each kind with its
budget; the rows of their queries are cut from the plan.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch

from dittools.kinds import kinds_of
from dittools.masks import Beside, KeyBias, four
from dittools.query_rows import QueryRows
from dittools.tokens import Layout, Part, TokenGrid, arranged, placed


class SeenBeside(NamedTuple):
    """Keys that queries of a piece see beside those that it takes.

    Args:
        keys: which, and what is added to their logits.
        samples: int64 ``[n]``, which samples of the piece; None: all.
        kinds: (kind of part, keys) that these are, of one sample.
        rows: int64 ``[r]``, which tokens of the piece see them, of its picture; None: all.
    """

    keys: Beside
    samples: torch.Tensor | None
    kinds: tuple[tuple[str, int], ...]
    rows: torch.Tensor | None = None


class SubCall(NamedTuple):
    """Samples of a batch that one sparse call takes, and which of their tokens.

    Args:
        grid: layout of the tokens taken.
        samples: int64 ``[b]`` indices; None is the whole batch.
        tokens: a slice of the sequence of keys, or int64 ``[grid.tokens]``: grid order -> sequence.
        rest: int64 ``[n]``, queries that are not taken: their rows are computed densely.
        beside: keys that the taken ones see, if not as they see each other.
        queries: as ``tokens`` in the sequence of queries, of those that have theirs here; None: they are the keys'
            places.
        own: which of the tokens taken have their queries here, the others being keys alone; None: all.
        more: query-key pairs of a sample in the rows of ``rest``, where these are known.
    """

    grid: TokenGrid
    samples: torch.Tensor | None
    tokens: slice | torch.Tensor
    rest: torch.Tensor | None = None
    beside: tuple[SeenBeside, ...] = ()
    queries: slice | torch.Tensor | None = None
    own: QueryRows | None = None
    more: int = 0

    @property
    def pairs(self) -> int:
        """Query-key pairs of a sample among which a method chooses."""
        return (self.grid.tokens if self.own is None else self.own.count) * self.grid.tokens

    @property
    def kinds(self) -> dict[str, int]:
        """How many tokens of each kind of part have their queries here."""
        found = kinds_of(self.grid)
        if self.own is not None:
            found = dict.fromkeys(found, 0)
            for part, at in self.grid.placed:
                found[part.kind] += self.own.within(at)
        return found

    def take(self, x: torch.Tensor) -> torch.Tensor:
        """The tokens of this piece, of keys or values: ``[B, S, H, D]`` -> ``[b, grid.tokens, H, D]``."""
        return self._taken(x, self.tokens)

    def take_queries(self, q: torch.Tensor, keys: torch.Tensor | None = None) -> torch.Tensor:
        """`take` of the queries. Those that are not here, whose rows nobody asks for, are their keys.

        Args:
            q: ``[B, Q, H, D]``. keys: that were taken; they are only read where some queries are not here.
        """
        taken = self._taken(q, self._rows)
        return taken if self.own is None else keys.index_copy(1, self.own.tokens, taken)

    @property
    def _rows(self) -> slice | torch.Tensor:
        return self.tokens if self.queries is None else self.queries

    def _taken(self, x: torch.Tensor, where: slice | torch.Tensor) -> torch.Tensor:
        if self.samples is None and isinstance(where, slice) and where == slice(None):
            return x
        x = x if self.samples is None else x.index_select(0, self.samples)
        return x[:, where] if isinstance(where, slice) else x.index_select(1, where)

    @property
    def whole(self) -> bool:
        """Whether it has all queries of the call as they stand."""
        return self.own is None and self.samples is None and isinstance(self._rows, slice) and self._rows == slice(None)

    def scatter(self, part: torch.Tensor, out: torch.Tensor) -> None:
        """Write what was computed of `take` to its place in ``[B, S, H, D]``."""
        samples = slice(None) if self.samples is None else self.samples
        part = part if self.own is None else part.index_select(1, self.own.tokens)
        if isinstance(samples, torch.Tensor) and isinstance(self._rows, torch.Tensor):
            samples = samples[:, None]
        out[samples, self._rows] = part

    def join(self, part: torch.Tensor, lse: torch.Tensor, q, k, v, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Output and log-sum-exp that a sparse call gave for `take`, with the keys beside it.

        Args:
            q: the queries taken. k, v: of the whole call.
        """
        mine = None if self.samples is None else self.samples
        if len(self.beside) == 1 and self.beside[0].samples is None and self.beside[0].rows is None:
            return self.beside[0].keys.join(part, lse, q, k, v, slice(None) if mine is None else mine, scale)
        part, lse = part.clone(), lse.clone()
        for keys, some, _, rows in self.beside:
            some = torch.arange(len(part), device=part.device) if some is None else some
            samples = some if mine is None else mine[some]
            rows = torch.arange(part.shape[1], device=part.device) if rows is None else rows
            at = some[:, None], rows
            out, total = keys.join(part[at], lse.mT[at].mT, q[at], k, v, samples, scale)
            part[at], lse.mT[at] = out, total.mT
        return part, lse

    def beside_of(self, batch: int) -> Counter[str]:
        """Keys beside of each kind that all its queries see, of so many samples of the piece together."""
        found = Counter()
        for _, some, kinds, rows in self.beside:
            for kind, count in kinds if rows is None else ():
                found[kind] += count * (batch if some is None else len(some))
        return found

    def pairs_beside(self, batch: int) -> Counter[tuple[str, str]]:
        """Pairs of queries of each kind and keys beside of each kind, of so many samples of the piece together."""
        found = Counter()
        for (one, count), (other, keys) in product(self.kinds.items(), self.beside_of(batch).items()):
            found[one, other] += count * keys
        for _, some, kinds, rows in self.beside:
            for kind, count in () if rows is None else kinds:
                found["picture", kind] += len(rows) * count * (batch if some is None else len(some))
        return +found

    def scatter_rest(self, q, k, v, mask: torch.Tensor, scale: float, out: torch.Tensor) -> None:
        """Rows of tokens that are not taken, as the model's own attention computes them; zeros where it has no mask."""
        samples = slice(None) if self.samples is None else self.samples
        if mask is None:
            out[samples if isinstance(samples, slice) else samples[:, None], self.rest] = 0
            return
        rows = q[samples].index_select(1, self.rest)
        mask = four(mask).expand(q.shape[0], -1, -1, -1)[samples]
        mask = mask if mask.shape[2] == 1 else mask.index_select(2, self.rest)
        rows, keys, values = (x.transpose(1, 2) for x in (rows, k[samples], v[samples]))
        part = torch.nn.functional.scaled_dot_product_attention(rows, keys, values, attn_mask=mask, scale=scale)
        where = samples if isinstance(samples, slice) else samples[:, None]
        out[where, self.rest] = part.transpose(1, 2)


def sub_calls(layout: Layout, keys: int, found: KeyBias | None, device: torch.device) -> list[SubCall] | str:
    """Cut a call of this many keys into pieces; or say why it cannot be done.

    Args:
        layout: where the picture is.
        found: as from `masks.key_bias`; None adds nothing.
        device: where indices go.

    Raises:
        ValueError: when the picture does not fit into the sequence.
    """
    cut = _Cut(layout.parts_of(keys), device)
    if found is None or not (found.bias.any() or found.apart is not None):
        return [cut.piece(torch.zeros(1, keys), torch.ones(keys, dtype=torch.bool), None)]
    bias, start = found.bias, layout.picture_start(keys)
    inside = bias[:, start : start + layout.picture]
    if inside.any():
        does = "hides" if inside.isinf().any() else "adds a bias to"
        return f"the call has an attention mask that {does} tokens of the picture"
    taken = (bias == 0) if found.apart is None else (bias == 0) & ~found.apart
    # Texts of other lengths cut a batch into pieces only where they have queries.
    told = torch.where(taken, 0.0, bias.masked_fill(bias == 0, torch.inf))[:, cut.inside]
    rows, which = torch.unique(told, dim=0, return_inverse=True)
    pieces = []
    for index in range(len(rows)):
        mine = (which == index).nonzero().flatten()
        pieces.append(cut.piece(bias[mine], taken[mine[0]], None if len(rows) == 1 else mine))
    return pieces


class KindOfTokens:
    """Which kind of part each token of a sequence is of.

    Args:
        parts: of the sequence, in its order.
    """

    def __init__(self, parts: Sequence[Part]):
        self._names = [part.kind for part in parts]
        self._part = torch.arange(len(parts)).repeat_interleave(torch.tensor([part.tokens for part in parts]))

    def counted(self, tokens: torch.Tensor) -> tuple[tuple[str, int], ...]:
        """(kind, how many) of some tokens, int64 ``[n]``; a kind that has none is left out."""
        found: Counter[str] = Counter()
        for name, count in zip(self._names, self._part[tokens].bincount(minlength=len(self._names)), strict=True):
            found[name] += int(count)
        return tuple((+found).items())


class _Cut:
    """Cuts pieces out of a call.

    Args:
        parts: of the sequence of keys.
        device: where indices go.
    """

    def __init__(self, parts: list[Part], device: torch.device):
        self._parts, self._device = parts, device
        sizes = torch.tensor([part.tokens for part in parts])
        self.asks = torch.tensor([part.queries for part in parts]).repeat_interleave(sizes)  # bool [S]: has a query
        # Keys alone that are a grid are in the grid of a piece, where a budget of their own is for them.
        self.inside = torch.tensor([part.planned for part in parts]).repeat_interleave(sizes)
        self._of_all = torch.tensor([part.seen_by is None for part in parts]).repeat_interleave(sizes)
        self._kinds = KindOfTokens(parts)
        self._query = self.asks.cumsum(0) - 1  # of each key that has one, which query it is

    def piece(self, bias: torch.Tensor, taken: torch.Tensor, samples: torch.Tensor | None) -> SubCall:
        """The piece of samples to whose keys ``bias``, fp32 ``[b, S]``, is added, and that takes ``taken``, bool
        ``[S]``, of what has queries or is a grid. A reference that misses tokens is no grid any more.
        """
        left, seen, taken = [], [], taken & self.inside
        for part, place in placed(self._parts):
            at = place.start + taken[place].nonzero().flatten()
            if len(at):  # what is hidden whole is no part
                left.append(Part(part.kind, len(at), part.shape if len(at) == part.tokens else None))
                seen.append(at)
        grid, order = arranged(left)
        kept = torch.cat([seen[number] for number in order])
        missed = (self.asks & ~taken).nonzero().flatten()
        queries, asks = None, self.asks[kept]
        if not self.asks.all():
            queries = placed_in(self._query[kept[asks]], int(self.asks.sum()), self._device)
        return SubCall(
            grid,
            None if samples is None else samples.to(self._device),
            placed_in(kept, len(taken), self._device),
            self._query[missed].to(self._device) if len(missed) else None,
            (*self._beside(bias, taken | ~self._of_all), *self._of_some(bias, kept, grid)),
            queries,
            None if asks.all() else QueryRows(asks, self._device),
        )

    def _of_some(self, bias: torch.Tensor, kept: torch.Tensor, grid: TokenGrid) -> list[SeenBeside]:
        """What some frames of the picture see beside the kept tokens, of samples that all show it."""
        found, first = [], grid.video_start
        for part, at in placed(self._parts):
            if part.seen_by is None or part.seen_by[0] >= part.seen_by[1] or bias[:, at].any():
                continue
            tokens = torch.arange(at.start, at.stop, device=self._device)
            rows = torch.arange(*(first + frame * grid.frame for frame in part.seen_by), device=self._device)
            found.append(SeenBeside(Beside(tokens, None), None, ((part.kind, part.tokens),), rows))
        return found

    def _beside(self, bias: torch.Tensor, taken: torch.Tensor) -> tuple[SeenBeside, ...]:
        """What is seen beside the taken keys, by groups of samples that see the same."""
        rows, which = torch.unique(bias.masked_fill(taken, -torch.inf), dim=0, return_inverse=True)
        found = []
        for index, row in enumerate(rows):
            at = row.isfinite().nonzero().flatten()
            if len(at):
                some = None if len(rows) == 1 else (which == index).nonzero().flatten().to(self._device)
                added = row[at].to(self._device) if row[at].any() else None
                found.append(SeenBeside(Beside(at.to(self._device), added), some, self._kinds.counted(at)))
        return tuple(found)


def placed_in(tokens: torch.Tensor, count: int, device: torch.device) -> slice | torch.Tensor:
    """Where tokens are in a sequence of so many: a slice where they are one."""
    first, number = int(tokens[0]), len(tokens)
    if not torch.equal(tokens, torch.arange(first, first + number)):
        return tokens.to(device)
    return slice(None) if number == count else slice(first, first + number)
