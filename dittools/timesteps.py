"""A timestep read in the units of its schedule, with how far rounding may have moved it, and its place there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

WITHIN_ONE = 1 - 1e-9  # a timestep cut to an integer
FINE = 1e-6  # machine epsilon below which a few more roundings cannot lead to a neighbour


class Reading(NamedTuple):
    """A timestep read from the device, in the units of the schedule.

    value: the largest of one timestep a token (clean tokens have 0). error: how far rounding may have moved it.
    all: every distinct value.
    """

    value: float
    error: float
    all: tuple[float, ...]

    def steps_of(self, timesteps: torch.Tensor) -> list[int]:
        """The steps of a schedule whose timestep it may be. Waits for the device."""
        return self.steps_among(on_host(timesteps))

    def steps_among(self, values: Sequence[float]) -> list[int]:
        """The same of a schedule on the host."""
        return [i for i, t in enumerate(values) if abs(t - self.value) <= self.error]


def on_host(timesteps: torch.Tensor) -> list[float]:
    """A schedule; of one timestep a frame, the largest."""
    return (timesteps if timesteps.ndim == 1 else timesteps.flatten(1).amax(1)).tolist()


def read(timestep: torch.Tensor | float, convert: Callable[[float], float] = lambda t: t) -> Reading:
    """Read a transformer's timestep; ``convert`` leads back to the schedule's units. Waits for the device."""
    tensor = timestep if isinstance(timestep, torch.Tensor) else torch.tensor(float(timestep), dtype=torch.float32)
    raw = tensor.flatten().double().unique().tolist()
    values = tuple(sorted({convert(x) for x in raw}))
    if not tensor.is_floating_point():
        return Reading(values[-1], WITHIN_ONE, values)
    # Twice rounded, as `1 - t.to(dtype) / 1000` is, a value is off by at most the distance of its neighbours there.
    slope = abs(convert(1.0) - convert(0.0))
    sizes = [(abs(x), slope) for x in raw] + [(abs(x), 1.0) for x in values]
    apart = max((scale * 2.0 ** math.floor(math.log2(size)) for size, scale in sizes if size), default=0.0)
    eps = torch.finfo(tensor.dtype).eps
    return Reading(values[-1], (eps if eps > FINE else 8 * eps) * apart, values)


def place_in(part: torch.Tensor | float, whole: torch.Tensor | None) -> int | None:
    """Index of the entry, or row, of ``whole`` that ``part`` is a view of, however expanded; None where it is none.

    `for t in timesteps` gives such views. No digits are compared and nothing is read from the device.
    """
    if not isinstance(part, torch.Tensor) or not isinstance(whole, torch.Tensor) or not whole.numel():
        return None
    if not shares_memory(part, whole) or part.dtype != whole.dtype or whole.stride(0) < 1:
        return None
    row = whole.shape[1:]
    spread = part.ndim - len(row)
    if spread < 0 or part.shape[spread:] != row:
        return None
    if any(size > 1 and stride for size, stride in zip(part.shape[:spread], part.stride()[:spread], strict=True)):
        return None
    index, rest = divmod(part.storage_offset() - whole.storage_offset(), whole.stride(0))
    return index if not rest and 0 <= index < len(whole) else None


def shares_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are views of the same memory."""
    if one is other:
        return True
    try:
        place = one.untyped_storage().data_ptr()
        return place != 0 and place == other.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # tensors without memory of their own
        return False
