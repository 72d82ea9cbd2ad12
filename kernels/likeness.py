"""How alike the tokens of each run of positions are, and their mean, in one pass."""

from __future__ import annotations

import torch

from dittools.kernels.choice import picks_triton
from dittools.kernels.run_means import run_means


def run_likeness(
    x: torch.Tensor, order: torch.Tensor | None, offsets: torch.Tensor, *, implementation: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean vector of every run, and the mean cosine of all pairs of its tokens, each with itself included.

    The mean over all pairs of unit vectors is the squared length of their mean, so no Gram matrix is needed.

    Args:
        x: ``[B, S, H, D]``, any strides.
        order, offsets: as `dittools.kernels.run_means.run_means` takes them. A run is one loop: they should not be
            very long.
        implementation: "triton" or "portable"; chosen when None.

    Returns:
        (means fp32 ``[B, H, N, D]``, likeness fp32 ``[B, H, N]``); 0 where a run is empty.
    """
    if picks_triton(implementation, x):
        from dittools.kernels.likeness_triton import triton_run_likeness

        return triton_run_likeness(x, order, offsets)
    means = run_means(x, order, offsets, implementation="portable")
    # Head by head, so that no more than one is widened at a time.
    of_heads = []
    for h in range(x.shape[2]):
        of = slice(h, h + 1)
        lanes = [t if t is None or t.shape[1] == 1 else t[:, of] for t in (order, offsets)]
        unit = torch.nn.functional.normalize(x[:, :, of].float(), dim=-1)
        of_heads.append(run_means(unit, *lanes, implementation="portable").square().sum(-1))
    return means, torch.cat(of_heads, 1)


def naive_run_likeness(x: torch.Tensor, order: torch.Tensor | None, offsets: torch.Tensor) -> torch.Tensor:
    """The oracle of the likeness: all pairs of each run, in fp64."""
    batches, tokens, heads, _ = x.shape
    if order is None:
        order = torch.arange(tokens, device=x.device)[None, None]
    order = order.expand(batches, heads, -1).long()
    found = torch.zeros(batches, heads, offsets.shape[-1] - 1, dtype=torch.float64)
    for b in range(batches):
        for h in range(heads):
            ends = offsets.expand(batches, heads, -1)[b, h].tolist()
            for n in range(len(ends) - 1):
                if ends[n + 1] > ends[n]:
                    unit = torch.nn.functional.normalize(x[b, order[b, h, ends[n] : ends[n + 1]], h].double(), dim=-1)
                    found[b, h, n] = (unit @ unit.T).mean()
    return found.float()
