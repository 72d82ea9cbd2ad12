"""Ulysses: tokens are exchanged for heads before attention, and heads for tokens after it.

Every rank has some tokens of all heads, and gets all tokens of its own heads: queries, keys and values in one
all-to-all, and what attention makes of them in one back. Source: DeepSpeed Ulysses (arXiv 2309.14509).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from dittools.ranks import Heads, Ranks


class Exchange:
    """The exchange of one attention call.

    Args:
        heads: of queries, and who has which.
        places: of each rank's tokens (`dittools.pipelines.parallel.joint.places_of`).

    Attributes:
        sent: bytes that went to other ranks.
    """

    def __init__(self, heads: Heads, places: Sequence[Sequence[tuple[int, int]]]):
        self.heads, self.ranks, self.places = heads, heads.ranks, places
        self.tokens = [sum(count for _, count in runs) for runs in places]
        # Runs of all ranks by their places: (rank, first of the run among the rank's tokens, tokens).
        listed = []
        for rank, runs in enumerate(places):
            starts = accumulate((count for _, count in runs), initial=0)
            listed += [(place, rank, at, count) for (place, count), at in zip(runs, starts, strict=False)]
        self._runs = [run[1:] for run in sorted(listed)]
        self.sent = 0

    def forth(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tensors of this rank's tokens and all heads as those of all tokens and its own heads, in their places:
        ``[B, S of this rank, H, D]`` -> ``[B, S, h, D]``, each with its own D.
        """
        batch, here = tensors[0].shape[:2]
        widths = [x.shape[-1] for x in tensors]
        counts = [len(heads) for heads in self.heads.by_rank]
        give = [batch * here * count * sum(widths) for count in counts]
        send = tensors[0].new_empty(sum(give))
        for part, heads in zip(send.split(give), self.heads.by_rank, strict=True):
            sizes = [batch * here * len(heads) * width for width in widths]
            for x, out in zip(tensors, part.split(sizes), strict=True):
                out.view(batch, here, len(heads), -1).copy_(_some(x, heads))
        mine = counts[self.ranks.rank]
        take = [batch * count * mine * sum(widths) for count in self.tokens]
        self._count(send, give)
        parts = self.ranks.exchange(send, give, take).split(take)
        found = []
        for number in range(len(tensors)):
            by_rank = []
            for part, count in zip(parts, self.tokens, strict=True):
                sizes = [batch * count * mine * width for width in widths]
                by_rank.append(part.split(sizes)[number].view(batch, count, mine, widths[number]))
            found.append(torch.cat([by_rank[rank][:, at : at + count] for rank, at, count in self._runs], 1))
        return found

    def back(self, out: torch.Tensor) -> torch.Tensor:
        """What attention gave for all tokens of this rank's heads as that of its tokens and all heads:
        ``[B, S, h, D]`` -> ``[B, S of this rank, H, D]``.
        """
        batch, _, mine, width = out.shape
        give = [batch * count * mine * width for count in self.tokens]
        send = out.new_empty(sum(give))
        parts = [part.view(batch, -1, mine, width) for part in send.split(give)]
        start = 0
        for rank, at, count in self._runs:
            parts[rank][:, at : at + count].copy_(out[:, start : start + count])
            start += count
        here = self.tokens[self.ranks.rank]
        take = [batch * here * len(heads) * width for heads in self.heads.by_rank]
        self._count(send, give)
        parts = self.ranks.exchange(send, give, take).split(take)
        found = out.new_empty(batch, here, self.heads.total(mine), width)
        for part, heads in zip(parts, self.heads.by_rank, strict=True):
            part = part.view(batch, here, len(heads), width)
            if _side_by_side(heads):
                found[:, :, heads[0] : heads[-1] + 1] = part
            else:
                found[:, :, torch.tensor(heads, device=out.device)] = part
        return found

    def key_mask(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask ``[B or 1, H or 1, 1, S of this rank]`` as that of all tokens, ``[.., 1, S]``, for its own heads."""
        most = max(self.tokens)
        padded = torch.nn.functional.pad(mask, (0, most - mask.shape[-1]))
        found = self.ranks.gather(padded)
        whole = torch.cat([found[rank][..., at : at + count] for rank, at, count in self._runs], -1)
        return self.heads.of(whole, 1)

    def _count(self, send: torch.Tensor, give: Sequence[int]) -> None:
        self.sent += (sum(give) - give[self.ranks.rank]) * send.element_size()


def volume(batch: int, tokens: int, heads: int, width: int, ranks: int, bytes_each: int) -> float:
    """Bytes that a rank sends to others in one call, forth and back, where all divides:
    ``4 B S H D / N * (N - 1) / N`` numbers for q, k, v and the output.
    """
    return 4 * batch * tokens * heads * width * bytes_each * (ranks - 1) / ranks**2


def token_counts(ranks: Ranks, here: int, even: bool) -> list[int]:
    """Tokens of each rank; asked of them where they may differ. Waits for the device then."""
    if even:
        return [here] * ranks.size
    counts = [0] * ranks.size
    counts[ranks.rank] = here
    return ranks.agree_max(counts)


def _some(x: torch.Tensor, heads: Sequence[int]) -> torch.Tensor:
    if _side_by_side(heads):
        return x[:, :, heads[0] : heads[-1] + 1]
    return x.index_select(2, torch.tensor(heads, device=x.device))


def _side_by_side(heads: Sequence[int]) -> bool:
    return tuple(heads) == tuple(range(heads[0], heads[0] + len(heads)))
