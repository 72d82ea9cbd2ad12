"""Scores of cluster pairs: what mass, or what error, a query cluster has in each key cluster."""

from __future__ import annotations

import torch

from dittools.kernels.residual.error import block_approximation_error
from dittools.orders.clusters import Clustered
from dittools.ranks import ALL, Heads
from dittools.selection.budget import select_topk_blocks, select_topk_blocks_apart


def centroid_mass(query: Clustered, key: Clustered, scale: float) -> torch.Tensor:
    """Softmax mass of each key cluster as the query cluster's mean sees it, every key at its cluster's mean.

    Empty clusters hold none. Source: SVG2 (arXiv 2505.18875, section 4), here in fp32 throughout.

    Returns:
        fp32 ``[B, H, Mq, Nk]``, each row summing to 1.
    """
    # Scaled while it is small, and added to in place: each pass over all pairs takes as long as the product.
    logits = (query.means * scale) @ key.means.transpose(-1, -2)  # [B, H, Mq, Nk]
    return logits.add_(key.partition.run_sizes.log()[..., None, :]).softmax(-1)


def compensation_error(
    query: Clustered, key: Clustered, k: torch.Tensor, v: torch.Tensor, scale: float
) -> torch.Tensor:
    """Squared error that a skipped pair of clusters leaves when its mean key and mean value stand in for it.

    ``sum over keys t of cluster n of |exp(q.k_t) v_t - exp(q.k_n) v_n|^2``, q the mean of the query cluster, relative
    to the squared softmax sum of its row. One pass of all means over all keys: half of Mq / S of dense attention.
    On a GPU the means of queries are rounded to the dtype of k.

    Args:
        k, v: ``[B, S, H, D]`` in token order.

    Returns:
        fp32 ``[B, H, Mq, Nk]``. Source: SVG-EAR (arXiv 2603.08982).
    """
    return block_approximation_error(query.means, k, v, key.order, key.partition.offsets(), scale)


def select_topk_clusters(
    scores: torch.Tensor, query: Clustered, key: Clustered, density: float, *, scope: str = "row", heads: Heads = ALL
) -> torch.Tensor:
    """Pairs of clusters to keep, with a budget for each kind of pair; text keeps all and is kept by all.

    Args:
        scores: ``[B, H, Mq, Nk]``, more is better.
        density: share to keep of the pairs of each kind.
        scope, heads: as `dittools.selection.budget.select_topk_blocks`.

    Returns:
        bool ``[B, H, Mq, Nk]``.
    """
    queries, keys = ([(at, side.partition.run_sizes[..., at]) for at in side.areas] for side in (query, key))
    if len(keys) == 1 and key.text is None:
        return select_topk_blocks(scores, queries[0][1], keys[0][1], density, scope=scope, heads=heads)
    return select_topk_blocks_apart(scores, queries, keys, lambda i, j: density, scope=scope, heads=heads)
