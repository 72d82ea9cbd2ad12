"""Uploads: only host memory is pinned, and only for CUDA."""

from types import SimpleNamespace

import pytest
import torch

from dittools.kernels.upload import upload


class Told:
    """Stands for a tensor on some device, and remembers what it was told."""

    def __init__(self, place):
        self.device, self.said = SimpleNamespace(type=place), []

    def pin_memory(self):
        self.said.append("pin")
        return self

    def to(self, device, **how):
        self.said.append((device.type, how))
        return self


@pytest.mark.parametrize("here, there, said", [
    ("cpu", "cuda", ["pin", ("cuda", {"non_blocking": True})]),
    ("cuda", "cuda", [("cuda", {})]),  # what is there already, or on another card, cannot be pinned
    ("cuda", "cpu", [("cpu", {})]),
    ("cpu", "cpu", [("cpu", {})]),
])  # fmt: skip
def test_only_host_memory_on_its_way_to_cuda_is_pinned(here, there, said):
    told = Told(here)
    upload(told, torch.device(there))
    assert told.said == said
