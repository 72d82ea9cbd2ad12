"""The oracle of what masks lose on a few query rows."""

from __future__ import annotations

import torch


def naive_probe_errors(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, masks: torch.Tensor, *, scale: float | None = None
) -> torch.Tensor:
    """The oracle, of masks as bool ``[C, n, S]`` that leave every row something: softmax after softmax, in fp64."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))  # [B, H, n or S, D]
    logits = q @ k.transpose(-1, -2) * scale
    dense = logits.softmax(-1) @ v
    lost = [logits.masked_fill(~mask, -torch.inf).softmax(-1) @ v - dense for mask in masks]
    return torch.stack([x.square().mean((-1, -2)) for x in lost]).float()
