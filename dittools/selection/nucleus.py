"""Cumulative thresholds that differ from plain top-p (`dittools.kernels.keep_mass`), as some methods define them."""

from __future__ import annotations

import torch

from dittools.ranks import ALL, Heads


def within_mass(scores: torch.Tensor, p: float) -> torch.Tensor:
    """Best blocks of each row while their sum stays within p of it: the block that would cross p is left out.

    Args:
        scores: ``[..., M, N]``, at least 0.
        p: share of the row's sum, in (0, 1]; 1 keeps every block.

    Returns:
        bool ``[..., M, N]``, at least one block a row. Source: SpargeAttn's cdf mode.
    """
    if p == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    held, order = scores.sort(dim=-1, descending=True, stable=True)
    reached = held.cumsum(-1)
    chosen = reached <= p * reached[..., -1:]
    chosen[..., 0] = True
    return torch.zeros_like(chosen).scatter_(-1, order, chosen)


def min_max_nucleus(gate: torch.Tensor, p: float, scope: str, force: torch.Tensor, heads: Heads = ALL) -> torch.Tensor:
    """Blocks whose min-max normalised gates reach the share p of their sum, forced ones first, and one more at least.

    Args:
        gate: ``[B, H, M, N]``, any numbers.
        p: share in (0, 1]; 1 keeps every block.
        scope: over what gates are normalised and summed: "row", "head" or "layer".
        force: bool, broadcastable to the gate, one for all heads where other ranks have some.
        heads: which of the layer's heads these are.

    Returns:
        bool ``[B, H, M, N]``. Source: VMoBA's threshold mode.
    """
    if scope == "layer" and not heads.alone:
        return heads.of(min_max_nucleus(heads.gather(gate, 1), p, scope, force), 1)
    force = force.expand(gate.shape)
    if p == 1:
        return torch.ones_like(force)
    lanes = {"row": 3, "head": 2, "layer": 1}[scope]
    flat, first = gate.flatten(lanes), force.flatten(lanes)
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    flat = (flat - low) / (high - low).clamp_min(torch.finfo(flat.dtype).tiny)
    order = flat.masked_fill(first, torch.inf).argsort(dim=-1, descending=True, stable=True)
    held = flat.double().gather(-1, order)
    before = held.cumsum(-1) - held
    # The block that reaches p is kept, and where forced ones reach it alone, the best of the others still is.
    chosen = (before < p * held.sum(-1, keepdim=True)) | (
        torch.arange(flat.shape[-1], device=gate.device) <= first.sum(-1, keepdim=True)
    )
    return torch.zeros_like(first).scatter(-1, order, chosen).view(gate.shape) | force
