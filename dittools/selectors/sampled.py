"""Candidates judged on a sample of query rows: which mask loses least of the dense output."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Largest working set of one chunk of heads.
CHUNK_BYTES = 256 << 20


def stratified_rows(tokens: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """One random token of each of ``count`` equal stretches of the sequence: int64 ``[count]`` on the CPU."""
    count = min(count, tokens)
    edges = torch.arange(count + 1, dtype=torch.float64) * tokens / count
    low, high = edges[:-1].ceil().long(), edges[1:].ceil().long()
    return low + (torch.rand(count, generator=generator, dtype=torch.float64) * (high - low)).long()


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
        fp32 ``[len(masks), B, H]``: mean over rows and D. Logits, softmax and errors are fp32; products run
        in the dtype of q with fp32 accumulation.
    """
    batches, tokens, heads, _ = q.shape
    wide = 4 + 4 + (1 + len(masks)) * q.element_size()  # bytes an element of the logits takes on the way
    chunk = max(1, CHUNK_BYTES // (batches * len(rows) * tokens * wide))
    kept = torch.stack(tuple(masks))[:, None, None]  # [C, 1, 1, n, S]
    errors = [
        _errors(*(x[:, :, i : i + chunk].transpose(1, 2) for x in (q[:, rows], k, v)), kept, scale)
        for i in range(0, heads, chunk)
    ]
    return torch.cat(errors, dim=-1)


def _errors(q, k, v, kept, scale: float) -> torch.Tensor:
    logits = (q @ k.transpose(-1, -2)).float().mul_(scale)  # [B, h, n, S]
    mass = logits.sub_(logits.amax(-1, keepdim=True)).exp_()
    dense = _output(mass.to(v.dtype), v)
    # Masking the dense weights and normalising again is the masked softmax, for one exp instead of three.
    return torch.stack([(_output(mass.mul(m).to(v.dtype), v) - dense).square().mean((-1, -2)) for m in kept])


def _output(weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Rows of weights ``[B, h, n, S]``, normalised, times v ``[B, h, S, D]``: fp32 ``[B, h, n, D]``."""
    total = weights.sum(-1, keepdim=True, dtype=torch.float32)
    # A mask that keeps nothing of the mass fp32 can see loses the whole output.
    return (weights @ v).float() / total.clamp_min(torch.finfo(torch.float32).tiny)
