"""Candidates judged on a sample of query rows: which mask loses least of the dense output."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

# Largest working set of one chunk of heads.
CHUNK_BYTES = 256 << 20


def stratified_rows(tokens: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """One random token of each of ``count`` equal stretches of the sequence: int64 ``[count]`` on the CPU."""
    low, length = _stretches(tokens, min(count, tokens))
    return low + (torch.rand(len(low), generator=generator, dtype=torch.float64) * length).long()


@lru_cache(maxsize=16)
def _stretches(tokens: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First token and length of each stretch: int64 ``[count]``."""
    with torch.inference_mode(False):
        edges = torch.arange(count + 1, dtype=torch.float64) * tokens / count
        low, high = edges[:-1].ceil().long(), edges[1:].ceil().long()
        return low, high - low


def sampled_errors(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    masks: Sequence[torch.Tensor],
    scale: float,
) -> torch.Tensor:
    """Mean squared error that each mask makes on the sampled rows, against their dense output.

    Args:
        q, k, v: ``[B, S, H, D]``.
        rows: query tokens to look at, int64 ``[n]``, on the device of q.
        masks: bool ``[n, S]`` each, in token coordinates; every row keeps something.
        scale: factor on the logits.

    Returns:
        fp32 ``[len(masks), B, H]``: mean over rows and D. The softmax sums and the errors are fp32; products run
        in the dtype of q with fp32 accumulation.
    """
    return errors_of(q, k, v, rows, torch.stack((torch.ones_like(masks[0]), *masks)), scale)


def errors_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, kept: torch.Tensor, scale: float
) -> torch.Tensor:
    """`sampled_errors` of masks in one tensor: bool ``[1 + C, n, S]``, of which the first keeps everything."""
    batches, tokens, heads, _ = q.shape
    wide = (2 + len(kept)) * q.element_size()  # bytes an element of the logits takes on the way
    chunk = max(1, CHUNK_BYTES // (batches * len(rows) * tokens * wide))
    q = q.index_select(1, rows)
    if chunk >= heads:
        return _errors(q, k, v, kept, scale)
    parts = zip(*(x.split(chunk, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([_errors(*part, kept, scale) for part in parts], dim=-1)


def _errors(q, k, v, kept: torch.Tensor, scale: float) -> torch.Tensor:
    """fp32 ``[C, B, h]`` of q ``[B, n, h, D]`` and k, v ``[B, S, h, D]``; the first of ``kept`` keeps everything."""
    lanes = q.shape[0], q.shape[2]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # [L, n or S, D], L = B h
    logits = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)  # [L, n, S]
    # Masking the dense weights and normalising again is the masked softmax, for one softmax instead of three.
    weights = logits.softmax(-1)[:, None] * kept  # [L, 1 + C, n, S]
    # A mask that keeps nothing of the mass fp32 can see loses the whole output.
    total = weights.sum(-1, keepdim=True, dtype=torch.float32).clamp_min(torch.finfo(torch.float32).tiny)
    out = (weights.flatten(1, 2) @ v).unflatten(1, kept.shape[:2]) / total  # fp32 [L, 1 + C, n, D]
    return (out[:, 1:] - out[:, :1]).square().mean((-1, -2)).T.unflatten(1, lanes)
