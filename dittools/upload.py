"""From the host to the device without waiting for it."""

from __future__ import annotations

import torch


def upload(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A CPU tensor on ``device``. Memory that is not pinned would make the host wait for a copy to CUDA."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
