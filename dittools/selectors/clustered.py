"""Scores of cluster pairs: what mass, or what error, a query cluster has in each key cluster."""

from __future__ import annotations

import torch

from dittools.kernels.compensation import run_errors
from dittools.orders.clusters import Clustered


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
    return run_errors(query.means, k, v, key.order, key.partition.offsets(), scale)
