"""A sparsity that plans miss is told in their notes, whatever method made them, and nothing waits for the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from dittools.kernels.masks.block_mask import BlockMask
from dittools.kinds import kept_by_kind
from dittools.scoped_cache import process_cached
from dittools.selection.areas import AreaPair, areas_of
from dittools.selection.geometric import TOLERANCE
from dittools.tokens import TokenGrid

if TYPE_CHECKING:
    from dittools.methods.base import AttentionCall, Plan


# What is skipped of all pairs may be less than what was asked of the picture's by this much without a note.
MUCH_LESS = 0.1


class HostReading:
    """A number on its way from the device to the host.

    Args:
        number: a scalar tensor.
    """

    def __init__(self, number: torch.Tensor):
        self._number, self._there = number, None
        if number.device.type == "cuda":
            self._number = torch.empty((), dtype=number.dtype, pin_memory=True).copy_(number, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(number.device))

    @property
    def comes(self) -> bool:
        """Whether there will be a value: no other device gives one without waiting."""
        return self._number.device.type == "cpu"

    @property
    def value(self) -> float | None:
        """The number; None while it is not there."""
        if not self.comes or (self._there is not None and not self._there.query()):
            return None
        return float(self._number.numpy())


class BudgetCheck:
    """What the plans of one run and grid keep, held against what was asked.

    On a GPU a share is read when it has arrived, in a later call: a miss is then told in the notes of that call's plan.

    Attributes:
        note: of the first plan that missed; the others say the same, so that a run has one line of it.
    """

    def __init__(self):
        self.note: str | None = None
        self._coming: deque[tuple[HostReading, float, str, str]] = deque()
        self._shared: list[tuple[torch.Tensor, float, str, str]] = []  # of this rank's heads or samples alone

    def of(self, plan: Plan, name: str, asked: float, call: AttentionCall) -> tuple[str, ...]:
        """The notes of a plan that ``name`` made; ``asked`` is the share of the picture's pairs with itself that it was
        to skip.
        """
        return (*self._of_picture(plan, name, asked, call), *beside(call.grid, asked))

    def _of_picture(self, plan: Plan, name: str, asked: float, call: AttentionCall) -> tuple[str, ...]:
        new = call.grid not in plan.readings
        if new:
            by_kind = kept_by_kind(plan, call.grid)
            kept = plan.share if by_kind is None else by_kind[0, 0]
            plan.readings[call.grid] = HostReading(kept)
        reading = plan.readings[call.grid]
        where = f"{name}, layer {call.layer}, step {call.step}"
        if call.halved or not call.heads.alone:
            if new:
                self._shared.append((kept, asked, where, why(plan, call, asked)))
            return ()
        seen = reading, asked, where, why(plan, call, asked)
        if self._judge(*seen):
            return (self.note,)
        told = self.note
        if new and reading.comes and reading.value is None:
            self._coming.append(seen)
        while self._coming and self._coming[0][0].value is not None:
            self._judge(*self._coming.popleft())
        return () if self.note == told else (self.note,)

    def shares(self) -> list[torch.Tensor]:
        """What the new plans of several ranks keep, each of this one's heads and samples: scalar tensors."""
        return [kept for kept, *_ in self._shared]

    def correct(self, shares: Sequence[torch.Tensor]) -> None:
        """Of these plans the shares over the heads of all ranks are known, but not over all samples."""
        self._shared = [(kept, *about) for kept, (_, *about) in zip(shares, self._shared, strict=True)]

    def settle(self, shares: Sequence[torch.Tensor]) -> tuple[str, ...]:
        """The notes of these plans.

        Args:
            shares: what each of `shares` is over the heads of all ranks.
        """
        told = self.note
        self._coming.extend((HostReading(kept), *about) for kept, (_, *about) in zip(shares, self._shared, strict=True))
        self._shared = []
        while self._coming and (not self._coming[0][0].comes or self._coming[0][0].value is not None):
            self._judge(*self._coming.popleft())
        return () if self.note == told else (self.note,)

    def _judge(self, reading: HostReading, asked: float, where: str, why: str) -> bool:
        """Whether a share that is there is not the asked one; the first such is noted."""
        kept = reading.value
        if kept is None or abs(1 - kept - asked) <= TOLERANCE:
            return False
        if self.note is None:
            self.note = f"{where}: skips {1 - kept:.2f} of the picture's pairs, and {asked:.3g} was asked: {why}"
        return True


@process_cached(32)
def beside(grid: TokenGrid, asked: float) -> tuple[str, ...]:
    """A note where tokens that stay dense leave much less skipped of all pairs than of the picture's."""
    dense = sum(part.tokens for part, _ in grid.placed if part.shape is None)
    share = 1 - (1 - dense / grid.tokens) ** 2
    if asked * share <= MUCH_LESS:
        return ()
    return (
        f"text and what else stays dense is in {share:.2f} of all pairs: of these a call skips "
        f"{asked - asked * share:.2f}",
    )


def why(plan: Plan, call: AttentionCall, asked: float) -> str:
    """What most likely keeps a plan from the asked share, by what the host knows."""
    mask = plan.mask
    if not isinstance(mask, BlockMask):
        return f"{mask.query.count} x {mask.key.count} clusters give no nearer choice"
    picture = next((area for area in areas_of(call.grid, call.block_size) if area.kind == "picture"), None)
    mixed = AreaPair(picture, picture).mixed if picture and plan.keys is None else 0.0
    if mixed > TOLERANCE:
        return f"blocks that hold text too, and so stay dense, take {mixed:.2f}"
    return f"{call.grid.video} tokens in blocks of {call.block_size} give no nearer choice"
