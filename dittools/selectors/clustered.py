"""Scores of cluster pairs: what mass, or what error, a query cluster has in each key cluster."""

from __future__ import annotations

import torch

from dittools.orders.clusters import Clustered

# Logits of a chunk of centroids against all keys. A CPU wants them in its cache.
CHUNK_BYTES = 256 << 20
CPU_CHUNK_BYTES = 2 << 20


def centroid_mass(query: Clustered, key: Clustered, scale: float) -> torch.Tensor:
    """Softmax mass of each key cluster as the query cluster's mean sees it, every key at its cluster's mean.

    Empty clusters hold none. Source: SVG2 (arXiv 2505.18875, section 4), here in fp32 throughout.

    Returns:
        fp32 ``[B, H, Mq, Nk]``, each row summing to 1.
    """
    logits = query.means @ key.means.transpose(-1, -2) * scale  # [B, H, Mq, Nk]
    return (logits + key.partition.run_sizes.log()[..., None, :]).softmax(-1)


def compensation_error(
    query: Clustered, key: Clustered, k: torch.Tensor, v: torch.Tensor, scale: float
) -> torch.Tensor:
    """Squared error that a skipped pair of clusters leaves when its mean key and mean value stand in for it.

    ``sum over keys t of cluster n of |exp(q.k_t) v_t - exp(q.k_n) v_n|^2``, q the mean of the query cluster, relative
    to the squared softmax sum of its row. One pass of all means over all keys: Mq / S of dense attention.

    Args:
        k, v: ``[B, S, H, D]`` in token order.

    Returns:
        fp32 ``[B, H, Mq, Nk]``. Source: SVG-EAR (arXiv 2603.08982).
    """
    batches, heads, rows, _ = query.means.shape
    labels, sizes = key.partition.labels(), key.partition.run_sizes
    order = key.order.long()
    error = torch.empty(batches, heads, rows, sizes.shape[-1], device=k.device)
    budget = CPU_CHUNK_BYTES if k.device.type == "cpu" else CHUNK_BYTES
    step = max(1, budget // (4 * k.shape[1]))
    for b in range(batches):
        for h in range(heads):
            keys, values = (x[b, :, h].index_select(0, order[b, h]).float() for x in (k, v))  # [S, D]
            label, size = labels[b, h], sizes[b, h]
            sums = torch.zeros(len(size), v.shape[-1], device=k.device).index_add_(0, label, values)
            mean = sums / size.clamp_min(1)[:, None]  # [Nk, D]
            across = (values * mean[label]).sum(-1)  # [S]
            for i in range(0, rows, step):
                q = query.means[b, h, i : i + step] * scale
                logits, middle = q @ keys.T, q @ key.means[b, h].T  # [m, S], [m, Nk]
                total = logits.logsumexp(-1, keepdim=True)
                weight, whole = (logits - total).exp(), (middle - total).exp()
                own = _per_cluster(weight.square() * values.square().sum(-1), label, len(size))
                shared = _per_cluster(weight * across, label, len(size))
                far = size * mean.square().sum(-1)  # [Nk]
                error[b, h, i : i + step] = own - 2 * whole * shared + whole.square() * far
    return error.clamp_min_(0)


def _per_cluster(x: torch.Tensor, label: torch.Tensor, count: int) -> torch.Tensor:
    """Sums over the keys of each cluster: ``[m, S]`` -> ``[m, count]``."""
    return x.new_zeros(len(x), count).index_add_(1, label, x)
