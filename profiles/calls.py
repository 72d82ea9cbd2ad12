"""Reads the denoiser calls that were measured on one card, as `dittools plan --gpus` splits them over several."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dittools.files import parse_json, read_text

PATH = Path(__file__).parent / "calls.json"


@dataclass(frozen=True, kw_only=True)
class MeasuredCall:
    """One denoiser call of one guidance branch at a real shape, with random weights, on one card.

    Args:
        model, size: family and checkpoint, as `dittools bench model` names them.
        card: what it was measured on.
        layers, heads, head_dim: of its self-attention.
        frames, height, width: of the picture.
        tokens: of the self-attention sequence, text that shares it included.
        branches: guidance branches of a step.
        method, sparsity, dense_layers: of the sparse call; that many layers at the start ran dense.
        dense_seconds, sparse_seconds: the faster of eager and compiled.
        dense_attention, sparse_attention: seconds of these in self-attention, all that choosing costs included.
        kernel: seconds of the sparse call in the block-sparse kernel.
        weights_gb, peak_gb: of the transformer's weights, and most memory while a call ran.
    """

    model: str
    size: str
    card: str
    layers: int
    heads: int
    head_dim: int
    frames: int
    height: int
    width: int
    tokens: int
    branches: int
    method: str
    sparsity: float
    dense_layers: int
    dense_seconds: float
    sparse_seconds: float
    dense_attention: float
    sparse_attention: float
    kernel: float
    weights_gb: float
    peak_gb: float


@lru_cache(maxsize=1)
def measured_calls() -> tuple[MeasuredCall, ...]:
    """All calls that ship, by model; `python -m dittools.tools.measured_calls` writes them."""
    return tuple(MeasuredCall(**row) for row in parse_json(read_text(PATH))["calls"])
