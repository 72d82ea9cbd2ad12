"""The self-attention layers of one transformer: each with its seat, followed from call to call."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch

from dittools.pipelines.backend import BackendSlot
from dittools.pipelines.rebinding import kind_of
from dittools.pipelines.seats import Seat


class Layers:
    """Seats at the attention modules of one transformer; as a context manager, they are left at its end.

    Args:
        modules: attention modules by the number of their layer.
        slot: where they are led.
        model: the transformer.
    """

    def __init__(self, modules: Mapping[int, torch.nn.Module], slot: BackendSlot, model: torch.nn.Module | None = None):
        self._modules = dict(modules)
        self._seats = [Seat(module, slot, layer) for layer, module in modules.items()]
        if model is not None:
            slot.models.update(dict.fromkeys(modules, weakref.ref(model)))
        self._runtime = slot.runtime
        self._astray: list[int] = []
        self.follow()

    def follow(self) -> None:
        """Lead the processors that the modules have now: fusing projections and loading adapters exchange them."""
        self._astray = [seat.layer for seat in self._seats if not seat.follow()]

    def count_astray(self) -> None:
        """Count layers that this forward ran past the runtime, through processors that cannot be led."""
        for layer in self._astray:
            if not self._runtime.called(layer):
                found = kind_of(self._modules[layer].processor).__name__
                self._runtime.skip(layer, f"attention runs {found}, into which there is no way")

    def __enter__(self) -> Layers:
        return self

    def __exit__(self, *error: object) -> None:
        for seat in self._seats:
            seat.leave()
