"""From the host to the device without waiting for it."""

from __future__ import annotations

import torch


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor on ``device``. From host memory that is not pinned a copy to CUDA would make the host wait."""
    if x.device.type == "cpu" and device.type == "cuda":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)
