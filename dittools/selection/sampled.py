"""Query rows on which candidates are judged: of which mask loses least of the dense output."""

from __future__ import annotations

import torch

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
