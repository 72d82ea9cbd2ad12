"""Candidates judged on a sample of query rows: which mask loses least of the dense output."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dittools.kernels.probe.dispatch import pack_masks, probe_errors
from dittools.scoped_cache import process_cached


def stratified_rows(tokens: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """One random token of each of ``count`` equal stretches of the sequence: int64 ``[count]`` on the CPU."""
    low, length = _stretches(tokens, min(count, tokens))
    return low + (torch.rand(len(low), generator=generator, dtype=torch.float64) * length).long()


@process_cached(16)
def _stretches(tokens: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """First token and length of each stretch: int64 ``[count]``."""
    with torch.inference_mode(False):
        edges = torch.arange(count + 1, dtype=torch.float64) * tokens / count
        low, high = edges[:-1].ceil().long(), edges[1:].ceil().long()
        return low, high - low


def sampled_errors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, masks: Sequence[torch.Tensor], scale: float
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
    return errors_of(q, k, v, rows, pack_masks(torch.stack(tuple(masks))), scale)


def errors_of(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, kept: torch.Tensor, scale: float
) -> torch.Tensor:
    """`sampled_errors` of masks as bits: int32 ``[C, words, n]`` (`dittools.kernels.probe.dispatch.pack_masks`)."""
    return probe_errors(q.index_select(1, rows), k, v, kept, scale=scale)
