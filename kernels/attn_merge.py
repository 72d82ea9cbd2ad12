"""Attention over two disjoint sets of keys, made of what each set alone gave.

With ``lse = log sum_j exp(s_ij)`` of each set, ``lse = logaddexp(lse_a, lse_b)``, and the output is the mean of both
outputs by their shares of the softmax, ``exp(lse_x - lse)``. Source: Dao et al., "FlashAttention", arXiv 2205.14135,
where blocks of keys are merged in this way.
"""

from __future__ import annotations

import torch


def merge(
    out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The attention of the same queries over the keys of both calls.

    Args:
        out, other: ``[B, S, H, D]``, outputs over keys that no call shares with the other.
        lse, other_lse: fp32 ``[B, H, S]``, natural logs of their softmax sums; -inf where a call had no keys.

    Returns:
        Output ``[B, S, H, D]`` in the dtype of ``out``, and its log-sum-exp ``[B, H, S]``. Sums are fp32. A row that
        had no keys in either call is that of ``out``, with -inf.
    """
    merged, total = merge_rows(out, lse.mT, other, other_lse.mT)
    return merged, total.mT


def merge_rows(
    out: torch.Tensor, lse: torch.Tensor, other: torch.Tensor, other_lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`merge` with the log-sum-exp beside its row: outputs ``[..., D]``, log-sum-exps ``[...]``."""
    share = merge_share(other_lse, lse)[..., None]
    merged = torch.lerp(out.float(), other.float(), share)
    return merged.to(out.dtype), torch.logaddexp(lse, other_lse)


def merge_share(lse: torch.Tensor, other_lse: torch.Tensor) -> torch.Tensor:
    """The share of a call in the softmax over its keys and the other's, fp32 in [0, 1]; 0 where neither has any."""
    share = (lse - other_lse).sigmoid()  # exp(a) / (exp(a) + exp(b)), also where one of them is -inf
    return share.masked_fill(lse.isneginf(), 0.0)
