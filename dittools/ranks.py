"""Who shares the attention calls of one transformer: processes that talk, and the heads that each of them has.

Ranks make the same calls in the same order, so that a collective of one meets that of the others. What a rank decides
from data that the others do not have, they have to agree on first; alone, nothing here costs anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, TypeVar

import torch

Made = TypeVar("Made")

MOST_TEXT = 480  # bytes of a reason that goes to the others
_GO, _DECLINED, _FAILED = range(3)


class FailedElsewhere(RuntimeError):
    """What all ranks do together ended in an error on another one."""


class _Halted(BaseException):
    """Leaves what is made together, since another rank cannot go on."""

    def __init__(self, state: int):
        super().__init__(state)
        self.state = state


class Ranks:
    """Processes that share the attention calls of one transformer.

    Args:
        group: a process group of torch.distributed; None for one process by itself.
        device: where its collectives find their tensors.

    Attributes:
        size, rank: how many they are, and which of them this one is.
    """

    def __init__(self, group: Any = None, device: torch.device | str = "cpu"):
        self.group, self.device = group, device if group is None else torch.device(device)
        self.size = 1 if group is None else torch.distributed.get_world_size(group)
        self.rank = 0 if group is None else torch.distributed.get_rank(group)
        self._together = False  # whether something is made together just now

    @property
    def alone(self) -> bool:
        """Whether there is nobody to talk to."""
        return self.size == 1

    def agree_max(self, numbers: Sequence[int] | torch.Tensor) -> list[int]:
        """The largest of each number on any rank; all give as many, int32 where in a tensor. Waits for the device."""
        if self.alone:
            return numbers.tolist() if isinstance(numbers, torch.Tensor) else list(numbers)
        found = torch.as_tensor(numbers, dtype=torch.int32, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=self.group)
        return found.tolist()

    def agree_text(self, text: str | None) -> str | None:
        """The text of the first rank that has one, cut after `MOST_TEXT` bytes. Waits for the device."""
        if self.alone:
            return text
        said = b"" if text is None else text.encode()[:MOST_TEXT] or b" "
        sent = torch.zeros(MOST_TEXT, dtype=torch.uint8)
        sent[: len(said)] = torch.tensor(list(said), dtype=torch.uint8)
        for found in self.gather(sent.to(self.device)):
            heard = bytes(found.tolist()).rstrip(b"\0")
            if heard:
                return heard.decode(errors="ignore")
        return None

    def gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The tensors of all ranks, by rank; of one shape and dtype everywhere."""
        if self.alone:
            return [x]
        x = x.contiguous()
        found = [torch.empty_like(x) for _ in range(self.size)]
        # As bytes: not every backend knows every dtype.
        torch.distributed.all_gather([_bytes(one) for one in found], _bytes(x), group=self.group)
        return found

    def exchange(self, send: torch.Tensor, give: Sequence[int], take: Sequence[int]) -> torch.Tensor:
        """All to all: elements for each rank, one rank after the other, against those that each has for this one.

        Args:
            send: contiguous, one dimension. give, take: elements for each rank, and from each.
        """
        each = send.element_size()
        found = send.new_empty(sum(take))
        sizes = [n * each for n in take], [n * each for n in give]
        torch.distributed.all_to_all_single(_bytes(found), _bytes(send), *sizes, group=self.group)
        return found

    def together(
        self, make: Callable[[], Made], declines: Callable[[Made], str | None]
    ) -> tuple[Made | None, str | None]:
        """What ``make`` gives, or the reason for which some rank declines it: then all do. Waits for the device.

        ``make`` may use `Heads.gather`, as often as it likes and not equally often where it stops early.

        Args:
            make: does this rank's part.
            declines: the reason for which what was made is none, or None.

        Raises:
            Exception: on every rank where ``make`` raised on one: there its own, elsewhere `FailedElsewhere`.
        """
        if self.alone:
            made = make()
            return made, declines(made)
        made, reason, error, state, agreed = None, None, None, _GO, None
        self._together = True
        try:
            made = make()
            reason = declines(made)
            state = _GO if reason is None else _DECLINED
        except _Halted as halted:
            agreed = halted.state
        except Exception as raised:
            error, state = raised, _FAILED
            reason = f"rank {self.rank}: {raised}"
        finally:
            self._together = False
        if agreed is None:
            (agreed,) = self.agree_max([state])
        if agreed == _GO:
            return made, None
        text = self.agree_text(reason if state == agreed else None)
        if agreed == _FAILED:
            raise error or FailedElsewhere(text)
        return None, text

    def check_others(self) -> None:
        """Before a collective within `together`: whether all ranks come to it."""
        if self._together:
            (state,) = self.agree_max([_GO])
            if state != _GO:
                raise _Halted(state)


ALONE = Ranks()


@dataclass(frozen=True, eq=False)
class Heads:
    """Which heads of a layer this rank has in a call.

    Args:
        ranks: those that share the call.
        by_rank: the heads of each rank, by their numbers in the layer; empty: this one has all.
    """

    ranks: Ranks = ALONE
    by_rank: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def even(cls, ranks: Ranks, total: int) -> Heads:
        """Heads side by side, as many for each rank as can be; the first ones have one more where they do not divide.

        A rank may have none.
        """
        return cls(ranks, _even(ranks.size, total))

    @property
    def alone(self) -> bool:
        """Whether this rank has all heads."""
        return self.ranks.alone or not self.by_rank

    @property
    def mine(self) -> tuple[int, ...]:
        """Numbers of this rank's heads; empty where it has all."""
        return self.by_rank[self.ranks.rank] if self.by_rank else ()

    @property
    def least(self) -> int:
        """Heads of the rank that has fewest; 0 where this one has all."""
        return min(map(len, self.by_rank), default=0)

    def total(self, here: int) -> int:
        """Heads of all ranks, where this one has ``here``."""
        return here if self.alone else sum(map(len, self.by_rank))

    def of(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's heads of a tensor with all heads along ``dim``; with one for all it is given as it is.

        Raises:
            ValueError: when the tensor has another number of heads.
        """
        if self.alone or x.shape[dim] == 1:
            return x
        if x.shape[dim] != len(self._order):
            raise ValueError(f"a tensor of all {len(self._order)} heads was asked for, got {x.shape[dim]}")
        first, count = self.mine[0], len(self.mine)
        if self.mine == tuple(range(first, first + count)):
            return x.narrow(dim, first, count)
        return x.index_select(dim, torch.tensor(self.mine, device=x.device))

    def pick(self, listed: Sequence[Made]) -> list[Made]:
        """This rank's of what is listed for all heads."""
        return list(listed) if self.alone else [listed[head] for head in self.mine]

    def gather(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """A tensor with this rank's heads along ``dim`` as that of all heads, in the layer's order, on every rank."""
        if self.alone:
            return x
        self.ranks.check_others()
        most = max(map(len, self.by_rank))
        x = x.movedim(dim, 0)
        short = most - x.shape[0]
        padded = torch.cat((x, x.new_zeros(short, *x.shape[1:]))) if short else x
        return self.joined(self.ranks.gather(padded)).movedim(0, dim)

    def joined(self, by_rank: Sequence[torch.Tensor]) -> torch.Tensor:
        """What each rank has of its heads, in front, as that of all heads in the layer's order; more of it is dropped.

        Args:
            by_rank: ``[heads of the rank or more, ...]`` each.
        """
        parts = torch.cat([one[: len(heads)] for one, heads in zip(by_rank, self.by_rank, strict=True)])
        if self._order == list(range(len(self._order))):
            return parts
        return parts.index_select(0, torch.tensor(self._place, device=parts.device))

    def every(self, true: bool) -> bool:
        """Whether something is true on every rank."""
        if self.alone:
            return true
        self.ranks.check_others()
        return not self.ranks.agree_max([not true])[0]

    @cached_property
    def _order(self) -> list[int]:
        """Heads as they come rank by rank."""
        return [head for heads in self.by_rank for head in heads]

    @cached_property
    def _place(self) -> list[int]:
        """Where each head comes among them."""
        return sorted(range(len(self._order)), key=self._order.__getitem__)


ALL = Heads()


@lru_cache(64)
def _even(size: int, total: int) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(range(start, stop)) for start, stop in stretches(total, size))


def stretches(total: int, count: int) -> list[tuple[int, int]]:
    """First and end of ``count`` stretches of ``total``, as even as can be, the longer ones first
    (`torch.tensor_split`)."""
    each, more = divmod(total, count)
    ends = [each * n + min(n, more) for n in range(count + 1)]
    return list(pairwise(ends))


def _bytes(x: torch.Tensor) -> torch.Tensor:
    return x.view(-1).view(torch.uint8)
