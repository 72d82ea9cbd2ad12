"""Sums of block masses over a run: on the device where they are small, else on the host, which adds while it works."""

from __future__ import annotations

from math import prod

import torch

MOST_DEVICE_BYTES = 512 << 20
"""Above it sums are kept in the host's memory."""


class MassSums:
    """Block masses of every layer and head, summed by group of steps.

    Nothing waits for the call that it is given: on the host a layer's masses are added when the next ones come. Memory
    is touched when it is first needed: a host may have tens of gigabytes to clear.

    Args:
        groups, layers, heads, count: of the sums, fp32 ``[groups, layers, H, M, M]``; M is ``count``.
        device: where masses come from.
    """

    def __init__(self, groups: int, layers: int, heads: int, count: int, device: torch.device):
        shape = (groups, layers, heads, count, count)
        on_host = device.type == "cpu" or 4 * prod(shape) > MOST_DEVICE_BYTES
        self._lanes: set[tuple[int, int]] = set()
        self._sums = torch.empty(shape, device="cpu" if on_host else device)
        self._staged: torch.Tensor | None = None
        self._waiting: tuple[int, int, torch.cuda.Event] | None = None

    def add(self, group: int, layer: int, mass: torch.Tensor) -> None:
        """Add the masses of one call, fp32 ``[H, M, M]``."""
        if mass.device == self._sums.device:
            self._put(group, layer, mass)
            return
        self._settle()
        if self._staged is None:
            self._staged = torch.empty(mass.shape, pin_memory=True)
        self._staged.copy_(mass, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record(torch.cuda.current_stream(mass.device))
        self._waiting = group, layer, copied

    def measured(self) -> torch.Tensor:
        """Which groups have masses of which layers: bool ``[groups, layers]`` on the CPU."""
        self._settle()
        groups, layers = self._sums.shape[:2]
        return torch.tensor([[(group, layer) in self._lanes for layer in range(layers)] for group in range(groups)])

    def sums(self) -> torch.Tensor:
        """All of them: fp32 ``[groups, layers, H, M, M]``, where they are kept; 0 where nothing was measured."""
        for group, layer in (~self.measured()).nonzero().tolist():
            self._sums[group, layer] = 0
        return self._sums

    def _put(self, group: int, layer: int, mass: torch.Tensor) -> None:
        if (group, layer) in self._lanes:
            self._sums[group, layer] += mass
        else:
            self._sums[group, layer] = mass
        self._lanes.add((group, layer))

    def _settle(self) -> None:
        if self._waiting is not None:
            group, layer, copied = self._waiting
            copied.synchronize()
            self._put(group, layer, self._staged)
            self._waiting = None
