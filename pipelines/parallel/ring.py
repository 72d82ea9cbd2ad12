"""Ring and unified attention: every rank attends for its own queries, over the keys of all ranks.

With a ring alone a rank has some tokens of all heads; unified, those that `exchange` gave it of its own heads. What a
method reads to plan is gathered, so that all ranks of a ring plan the same for all tokens, as one device does. Of keys
and values that planning did not need, only those go to a rank that some query block of its own keeps; a dense call
gathers all of both. Then all keys of a call are here, and it is attended in one call: the same kernel as on one device,
dense kernels that give no log-sum-exp too, and no merging of parts.

Source: Liu et al., "Ring Attention" (arXiv 2310.01889); Fang and Zhao, "USP" (arXiv 2405.07719) for both together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch

from dittools.call_info import AttentionInputs
from dittools.masks import four
from dittools.methods.base import Plan
from dittools.pipelines.parallel.exchange import Exchange, token_counts
from dittools.pipelines.parallel.joint import places_of
from dittools.query_rows import QueryRows
from dittools.ranks import Heads, Ranks
from dittools.runtime import Runtime
from dittools.sequence import SubCall
from dittools.stopwatch import Stopwatch

Runs = Sequence[tuple[int, int]]


class Ring:
    """The tokens of one attention call, of which every rank of a ring has some.

    Args:
        ranks: of the ring; all have the same heads.
        places: of each rank's tokens in the whole sequence, runs of (first, tokens), ascending.
        q, k, v: of this rank's tokens, ``[B, n, H, D]``.

    Attributes:
        sent: bytes that went to other ranks, each counted once for every rank that gets it.
        watches: of what it exchanged.
    """

    def __init__(self, ranks: Ranks, places: Sequence[Runs], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor):
        self.ranks, self.places, self.queries = ranks, places, q
        self.sent, self.watches = 0, []
        self._own = {"q": q, "k": k, "v": v}
        self._tokens = sum(count for runs in places for _, count in runs)
        self._whole: set[str] = set()
        self.q, self.k, self.v = (self._spread(x) for x in (q, k, v))

    def whole(self, *names: str) -> None:
        """Fill in the tokens of others in those of "q", "k" and "v" that are named."""
        names = [name for name in ("q", "k", "v") if name in names and name not in self._whole]
        if not names:
            return
        watch = Stopwatch(self.queries.device)
        most = max(self._count(runs) for runs in self.places)
        own = torch.cat([self._own[name] for name in names], -1)
        padded = torch.nn.functional.pad(own, (0, 0, 0, 0, 0, most - own.shape[1]))
        for rank, found in enumerate(self.ranks.gather(padded)):
            if rank == self.ranks.rank:
                continue
            parts = found.split([self._own[name].shape[-1] for name in names], -1)
            for name, part in zip(names, parts, strict=True):
                self._put(getattr(self, name), part, self.places[rank])
        self.sent += (self.ranks.size - 1) * padded.numel() * padded.element_size()
        self._whole.update(names)
        watch.stop()
        self.watches.append(watch)

    def fetch(self, plan: Plan) -> None:
        """Fill in the keys and values of others that a plan of the whole call wants for this rank's queries.

        They go straight from rank to rank, head by head. Waits for the device when a plan comes for the first time.
        """
        names = [name for name in ("k", "v") if name not in self._whole]
        if not names:
            return
        watch = Stopwatch(self.queries.device)
        if "pairs" not in plan.made:
            plan.made["pairs"] = self._pairs(plan)
        give, take = plan.made["pairs"]
        own = torch.cat([self._own[name] for name in names], -1)
        each = own.shape[0] * own.shape[-1]
        send = torch.cat([own[:, at, head].flatten() for at, head in give])
        sizes = [each * len(at) for at, _ in give], [each * len(at) for at, _ in take]
        widths = [self._own[name].shape[-1] for name in names]
        for part, (at, head) in zip(self.ranks.exchange(send, *sizes).split(sizes[1]), take, strict=True):
            parts = part.view(own.shape[0], len(at), own.shape[-1]).split(widths, -1)
            for name, found in zip(names, parts, strict=True):
                getattr(self, name)[:, at, head] = found
        self.sent += send.numel() * send.element_size()
        watch.stop()
        self.watches.append(watch)

    def rows(self, piece: SubCall) -> QueryRows:
        """This rank's queries among those of a piece of the call."""
        mine = self._rows(self.ranks.rank)
        return mine if piece.whole else mine.among(piece.tokens)

    def cut(self, x: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """This rank's tokens of a tensor of all."""
        runs = [x.narrow(dim, first, count) for first, count in self.places[self.ranks.rank]]
        return runs[0] if len(runs) == 1 else torch.cat(runs, dim)

    def _pairs(self, plan: Plan) -> tuple[list, list]:
        """Of each rank, the keys that go to it and those that come from it: number of the token, and head."""
        heads, mine = self.queries.shape[2], self.ranks.rank
        give, take = [], []
        for rank in range(self.ranks.size):
            if rank == mine:
                nothing = torch.zeros(0, dtype=torch.int64, device=self.queries.device)
                give.append((nothing, nothing))
                take.append((nothing, nothing))
                continue
            wanted = self._rows(rank).keys(plan).expand(heads, -1)  # [H, S]
            give.append(self.cut(wanted, 1).T.nonzero(as_tuple=True))
            tokens = self._rows(rank).tokens
            wanted = self._rows(mine).keys(plan).expand(heads, -1)
            at, head = wanted.index_select(1, tokens).T.nonzero(as_tuple=True)
            take.append((tokens[at], head))
        return give, take

    def _rows(self, rank: int) -> QueryRows:
        flags = torch.zeros(self._tokens, dtype=torch.bool)
        for first, count in self.places[rank]:
            flags[first : first + count] = True
        return QueryRows(flags, self.queries.device)

    def _spread(self, own: torch.Tensor) -> torch.Tensor:
        """This rank's tokens in their places among all; the others are zero."""
        x = own.new_zeros(own.shape[0], self._tokens, *own.shape[2:])
        self._put(x, own, self.places[self.ranks.rank])
        return x

    @staticmethod
    def _put(x: torch.Tensor, part: torch.Tensor, runs: Runs) -> None:
        starts = accumulate((count for _, count in runs), initial=0)
        for (first, count), at in zip(runs, starts, strict=False):
            x[:, first : first + count] = part[:, at : at + count]

    @staticmethod
    def _count(runs: Runs) -> int:
        return sum(count for _, count in runs)


def attend(runtime: Runtime, call: AttentionInputs, context: Any, dispatch: Callable[..., torch.Tensor]):
    """Attention of a layer of which this rank has some tokens and all heads: ``[B, S of this rank, H, D]``.

    Args: as `dittools.pipelines.parallel.ulysses.attend`.
    """
    q, k, v = call.q, call.k, call.v
    meshes = context._flattened_mesh, context._ulysses_mesh, context._ring_mesh
    everyone, row, ranks = (Ranks(mesh.get_group(), q.device) for mesh in meshes)
    counts = token_counts(everyone, q.shape[1], even=not context.ring_anything)
    places = places_of(counts, runtime.layout)
    rows = [places[at : at + row.size] for at in range(0, len(places), row.size)]
    heads = runtime.heads_of(call.layer, row, q.shape[2])
    mask = None
    if call.mask is not None:  # one that is for all tokens already was made of whole arguments, and is in their order
        mask = four(call.mask)
        mask = Exchange(Heads(everyone), places).key_mask(mask) if mask.shape[-1] == q.shape[1] else mask
        mask = heads.of(mask, 1)
    exchange, watches = Exchange(heads, rows[ranks.rank]), []
    if not row.alone:
        watches.append(Stopwatch(q.device))
        q, k, v = exchange.forth((q, k, v))
        watches[-1].stop()
    ring = Ring(ranks, [sorted(run for runs in row_ for run in runs) for row_ in rows], q, k, v)

    def dense() -> torch.Tensor:
        ring.whole("k", "v")
        own = mask if mask is None or mask.shape[2] == 1 else ring.cut(mask, 2)
        return dispatch(q, ring.k, ring.v, own)

    shared = AttentionInputs(call.layer, ring.q, ring.k, ring.v, call.scale, mask, heads, shared=ring)
    out = runtime.attend_inputs(shared, dense)
    if not row.alone:
        watches.append(Stopwatch(q.device))
        out = exchange.back(out)
        watches[-1].stop()
    runtime.note_exchange(exchange.sent + ring.sent, *watches, *ring.watches)
    return out
