"""Finite differences of what computed steps gave, and what they say of a later step.

Source: Liu et al., "From Reusing to Forecasting", arXiv 2503.06923 (TaylorSeer): differences divided by the
distance between computed steps, summed as a Taylor series. Order 0 is plain reuse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Factors = "list[list[torch.Tensor]]"
"""[order][tensor]: a value, its first difference, the difference of that, ..."""


def differences(value: Sequence[torch.Tensor], before: Factors, gap: int, order: int) -> Factors:
    """The differences at a computed step.

    Args:
        value: what the step gave.
        before: the differences at the computed step before it; empty at the first.
        gap: steps since then.
        order: most differences to keep.
    """
    found: Factors = [[tensor.detach() for tensor in value]]
    for known in before[:order] if gap > 0 else []:
        found.append([(now - then) / gap for now, then in zip(found[-1], known, strict=True)])
    return found


def forecast(factors: Factors, ahead: int) -> list[torch.Tensor]:
    """The value ``ahead`` steps after the one the differences were taken at."""
    total = list(factors[0])
    for order, terms in enumerate(factors[1:], 1):
        weight = ahead**order / math.factorial(order)
        total = [sum_ + weight * term for sum_, term in zip(total, terms, strict=True)]
    return total
