"""Seconds a stretch of work takes, on the device that does it."""

from __future__ import annotations

import time

import torch


class Stopwatch:
    """Started when made. On CUDA it sets events, and waits for the device only when it is read."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._begin = self._now(device)
        self._end: float | torch.cuda.Event | None = None
        self._device = device

    def stop(self) -> None:
        """End of the stretch; a later stop moves it."""
        self._end = self._now(self._device)

    @property
    def seconds(self) -> float | None:
        """Seconds from start to stop; None while it runs."""
        if self._end is None:
            return None
        if not self._cuda:
            return self._end - self._begin
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1000

    def _now(self, device: torch.device) -> float | torch.cuda.Event:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(device))
        return event
