"""Sums of block masses over a run: on the device where they are small, else on the host, which adds while it works."""

from __future__ import annotations

from math import prod

import torch

MOST_DEVICE_BYTES = 512 << 20
"""Above it sums are kept in the host's memory."""


class MassSums:
    """Block masses of every layer and head, summed by group of steps.

    Nothing waits for the call that it is given: on the host a layer's masses are added when the next ones come.

    Args:
        groups, layers, heads, count: of the sums, fp32 ``[groups, layers, H, M, M]``; M is ``count``.
        device: where masses come from.

    Attributes:
        heard: bool ``[groups, layers]``, on the CPU.
    """

    def __init__(self, groups: int, layers: int, heads: int, count: int, device: torch.device):
        shape = (groups, layers, heads, count, count)
        on_host = device.type == "cpu" or 4 * prod(shape) > MOST_DEVICE_BYTES
        self.heard = torch.zeros(groups, layers, dtype=torch.bool)
        self._sums = torch.zeros(shape, device="cpu" if on_host else device)
        self._staged: torch.Tensor | None = None
        self._waiting: tuple[int, int, torch.cuda.Event] | None = None

    def add(self, group: int, layer: int, mass: torch.Tensor) -> None:
        """Add the masses of one call, fp32 ``[H, M, M]``."""
        self.heard[group, layer] = True
        if mass.device == self._sums.device:
            self._sums[group, layer] += mass
            return
        self._settle()
        if self._staged is None:
            self._staged = torch.empty(mass.shape, pin_memory=True)
        self._staged.copy_(mass, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(mass.device))
        self._waiting = group, layer, copied

    def sums(self) -> torch.Tensor:
        """All of them: fp32 ``[groups, layers, H, M, M]``, where they are kept."""
        self._settle()
        return self._sums

    def _settle(self) -> None:
        if self._waiting is not None:
            group, layer, copied = self._waiting
            copied.synchronize()
            self._sums[group, layer] += self._staged
            self._waiting = None
