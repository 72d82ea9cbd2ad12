"""Attention between clusters of queries and clusters of keys, each in an order of its own.

Clusters have any size, down to none. It is what `dittools.kernels.block_sparse_attention`
does with a `ClusterMask`.
"""

from __future__ import annotations

import torch

from dittools.kernels.checks import check_lanes, check_tensors
from dittools.kernels.clusters.hopper import hopper_cluster_attention
from dittools.kernels.clusters.naive import naive_cluster_attention
from dittools.kernels.clusters.portable import portable_cluster_attention


def cluster_sparse_attention(
    name: str, tensors, mask, *, order=None, key_order=None, scale: float, return_lse: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`dittools.kernels.block_sparse_attention` of ``tensors`` (q, k, v) between clusters by the implementation of this
    name, for callers that asked `choose` and `check_clusters` before: nothing is asked again.
    """
    q, k, v = tensors
    key_order = order if key_order is None else key_order
    call = {"order": order, "key_order": key_order, "scale": float(scale)}
    if name == "hopper":
        out, lse = hopper_cluster_attention(q, k, v, mask, **call)
    elif name == "triton":
        from dittools.kernels.clusters.triton import triton_cluster_attention

        out, lse = triton_cluster_attention(q, k, v, mask, **call)
    elif name == "portable":
        out, lse = portable_cluster_attention(q, k, v, mask, return_lse=return_lse, **call)
    else:
        out, lse = naive_cluster_attention(q, k, v, mask, **call)
    return (out, lse) if return_lse else out


def check_clusters(q, k, v, mask, order=None, key_order=None) -> None:
    """Raise a one-line ValueError unless the arguments of a call between clusters fit together."""
    batches, queries, heads, keys = check_tensors(q, k, v, mask, "clusters")
    for name, x, shape in (
        ("the mask", mask.keep, (mask.query.count, mask.key.count)),
        ("sizes of query clusters", mask.query.run_sizes, (mask.query.count,)),
        ("sizes of key clusters", mask.key.run_sizes, (mask.key.count,)),
        ("order", order, (queries,)),
        ("key_order", key_order, (keys,)),
    ):
        if x is None:
            continue
        if "order" in name and x.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"{name} must be int32, got {x.dtype}")
        check_lanes(name, x, (batches, heads, *shape), q.device)
