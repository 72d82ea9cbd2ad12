"""What a calibrator is told, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dittools.kernels.upload import upload
from dittools.observer import AttentionEvent
from dittools.selection.sampled import stratified_rows
from dittools.tokens import TokenGrid


@dataclass(frozen=True)
class Size:
    """How large what is measured is.

    Args:
        layers, heads, steps: of the model and the run.
        block_size: tokens in a block of masks and masses.
    """

    layers: int
    heads: int
    steps: int
    block_size: int = 64


class Calibrator:
    """Hears q, k and v of every self-attention call of dense runs, and keeps sums.

    `rounds` says how many times it has to hear all prompts: what the first round finds may decide what the second
    looks at, so that nothing has to be kept for every candidate.
    """

    method: ClassVar[str]
    rounds: ClassVar[int] = 1
    by_step: ClassVar[bool] = False

    def __init__(self, size: Size):
        self.size = size
        self.grid: TokenGrid | None = None

    def observe(self, event: AttentionEvent, round: int) -> None:
        """Add one call to the sums. Nothing of size S x S may be held, and nothing may wait for the device: what
        is set up once, when a round begins, is the exception.
        """
        raise NotImplementedError

    def tables(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The method's section of a profile, and its arrays by name without the method's."""
        raise NotImplementedError


class RowCalibrator(Calibrator):
    """One that looks at a few query rows of some steps.

    `sampled_steps` at most are looked at, spread over the run; `sampled_rows` queries in each call.
    """

    sampled_steps: ClassVar[int] = 6
    sampled_rows: ClassVar[int] = 32

    def __init__(self, size: Size):
        super().__init__(size)
        self.steps = spread_steps(size.steps, self.sampled_steps)
        self.calls = torch.zeros(size.layers)

    def observe(self, event: AttentionEvent, round: int) -> None:
        if event.step_info.step not in self.steps:
            return
        if event.grid != self.grid:
            self.grid = event.grid
            self.prepare(event)
        tokens, step_info = event.grid.tokens, event.step_info
        seed = (step_info.step * 10_007 + event.layer) * 101 + sum(step_info.branch.encode()) % 101
        rows = upload(stratified_rows(tokens, self.sampled_rows, torch.Generator().manual_seed(seed)), event.q.device)
        if round == self.rounds - 1:
            self.calls[event.layer] += event.q.shape[0]
        self.look(event, rows, round)

    def prepare(self, event: AttentionEvent) -> None:
        """Make what stays the same as long as the grid does."""
        raise NotImplementedError

    def look(self, event: AttentionEvent, rows: torch.Tensor, round: int) -> None:
        """Add what these query rows, int64 ``[n]``, show."""
        raise NotImplementedError

    def section(self, **facts: Any) -> dict[str, Any]:
        """The section of a profile with these facts."""
        return {"by_step": self.by_step, "measured_steps": self.steps, **facts}

    def mean(self, sums: torch.Tensor) -> torch.Tensor:
        """Sums ``[layers, ...]`` over calls to means, on the CPU."""
        count = self.calls.clamp_min(1).to(sums.dtype)
        return sums.cpu() / count.view(-1, *(1,) * (sums.ndim - 1))


def spread_steps(steps: int, most: int) -> list[int]:
    """At most ``most`` steps, evenly over the run."""
    count = min(steps, most)
    return sorted({int((n + 0.5) * steps / count) for n in range(count)})


def fill_groups(values: torch.Tensor, event: torch.Tensor) -> torch.Tensor:
    """Tables of groups in which a layer was never measured, from the nearest group in which it was.

    A layer of the second of two transformers is silent in early steps, and a group may hold no sampled step.

    Args:
        values: ``[groups, layers, ...]``. event: bool ``[groups, layers]``.
    """
    filled = values.clone()
    for layer in range(values.shape[1]):
        known = event[:, layer].nonzero().flatten().tolist()
        for group in range(values.shape[0]):
            if known:
                filled[group, layer] = values[min(known, key=lambda g, at=group: abs(g - at)), layer]
    return filled
