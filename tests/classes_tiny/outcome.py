"""What a pipeline does with dittools on: at a full budget, sparse, and restored."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import dittools
from dittools.pipelines.families import family_of, transformers_of
from tests.classes_tiny.common import Row

STEPS = 3
# Every step and layer sparse.
SPARSE = {"method": "draft", "block_size": 64, "dense_steps": 0, "dense_layers": 0}


@dataclass(frozen=True)
class Outcome:
    """Of three runs.

    Args:
        full_error: largest difference from dense at a full budget, over the largest value of the dense output.
        change: the same at a sparsity of 0.6.
        restored: whether the restored pipeline draws the dense output to the bit.
        calls: of the sparse run, from its record.
        forwards: self-attention calls that the sparse run really made, counted by hooks.
        fallbacks, notes: of the sparse run, from its record.
    """

    full_error: float
    change: float
    restored: bool
    calls: dict[str, int]
    forwards: int
    fallbacks: list[dict[str, Any]]
    notes: list[str]


def run(row: Row) -> Outcome:
    """Draw with a row's pipeline in all four ways."""
    dense = draw(row)
    with dittools.accelerate(row.pipe, sparsity=0.0, **SPARSE):
        full = draw(row)
    fast = dittools.accelerate(row.pipe, sparsity=0.6, **SPARSE)
    with _counted(row.pipe) as made:
        sparse = draw(row)
    record = fast.record()
    fast.restore()
    back, size = draw(row), dense.abs().max().item()
    return Outcome(
        full_error=(full - dense).abs().max().item() / size,
        change=(sparse - dense).abs().max().item() / size,
        restored=torch.equal(back, dense),
        calls=record["calls"],
        forwards=sum(made),
        fallbacks=record["fallbacks"],
        notes=record["notes"],
    )


def draw(row: Row) -> torch.Tensor:
    """The first output of a pipeline's call, with a fixed seed: latents where it gives them."""
    call = {"num_inference_steps": STEPS, "output_type": "latent", **row.call}
    if call["num_inference_steps"] is None:
        del call["num_inference_steps"]
    with row.within():
        out = row.pipe(generator=torch.Generator().manual_seed(4), **call)
    drawn = next(getattr(out, name) for name in ("frames", "images") if hasattr(out, name))
    drawn = drawn[0] if isinstance(drawn, (tuple, list)) else drawn
    return torch.as_tensor(np.asarray(drawn)).float()


class _counted(ExitStack):
    """Counts the self-attention calls of a pipeline by hooks of its own: a list with an entry a call."""

    def __init__(self, pipe: Any):
        super().__init__()
        self._pipe = pipe

    def __enter__(self) -> list[int]:
        made: list[int] = []
        family = family_of(self._pipe)
        for _, model in transformers_of(self._pipe, family):
            for path, module in model.named_modules():
                if family.is_self_attention(path):
                    self.callback(module.register_forward_hook(lambda *_: made.append(1)).remove)
        return made
