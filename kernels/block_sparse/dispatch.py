"""The public calls, and the choice among implementations."""

from __future__ import annotations

import torch

from dittools.kernels.block_sparse.hopper import hopper_block_sparse_attention
from dittools.kernels.block_sparse.naive import naive_block_sparse_attention
from dittools.kernels.block_sparse.portable import portable_block_sparse_attention
from dittools.kernels.block_sparse.sample import check_sample, join_sample
from dittools.kernels.call import Call
from dittools.kernels.checks import check_lanes, check_tensors
from dittools.kernels.choice import choose
from dittools.kernels.clusters.dispatch import check_clusters, cluster_sparse_attention


def block_sparse_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask, **options
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention in which each query block visits only the key blocks that the mask keeps.

    Args:
        q: ``[B, Sq, H, D]``, fp16, bf16 or fp32, any strides.
        k, v: ``[B, Sk, H, D]``, same dtype and device.
        mask: a `BlockMask` over positions, on the same device; or a `ClusterMask`, of query clusters and key clusters
            of any size.
        options: ``order``, ``key_order``, ``scale``, ``key_bias``, ``sample``, ``return_lse``, ``implementation``: see
            `dittools.kernels.call.Call`.

    Returns:
        out ``[B, Sq, H, D]`` in the dtype of q. With ``return_lse``: (out, lse), lse fp32 ``[B, H, Sq]``, in
        natural log. A row that keeps no block gives zeros and -inf.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    call = Call(**options)
    clustered = getattr(mask, "variable", False)
    order, key_order = call.order, call.key_order
    if clustered:
        for what in ("key_bias", "sample"):
            if getattr(call, what) is not None:
                raise ValueError(f"{what} goes with a BlockMask, and this mask has clusters: leave it out")
        key_order = order if key_order is None else key_order
        check_clusters(q, k, v, mask, order, key_order)
    else:
        if key_order is not None:
            raise ValueError("key_order goes with a ClusterMask, and this mask has even blocks: leave it out")
        check_call(q, k, v, mask, order, call.key_bias, call.sample)
    how = {"order": order, "scale": call.scale_of(q), "return_lse": call.return_lse}
    any_order = key_order if order is None else order
    name = choose(q, k, v, mask, order=any_order, implementation=call.implementation)
    if clustered:
        return cluster_sparse_attention(name, (q, k, v), mask, key_order=key_order, **how)
    return attend_by(name, (q, k, v), mask, key_bias=call.key_bias, sample=call.sample, **how)


def attend_by(
    name: str, tensors, mask, *, order=None, scale: float, key_bias=None, sample=None, return_lse: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`block_sparse_attention` of ``tensors`` (q, k, v) over even blocks by the implementation of this name, for
    callers that asked `choose` and `check_call` before: nothing is asked again.
    """
    q, k, v = tensors
    if sample is not None and not sample.positions.shape[1]:
        sample = None
    call = {"order": order, "scale": float(scale)}
    beside = key_bias if sample is None else sample
    if name == "hopper":
        out, lse = hopper_block_sparse_attention(q, k, v, mask, beside=beside, **call)
    elif name == "triton":
        from dittools.kernels.block_sparse.triton import triton_block_sparse_attention

        out, lse = triton_block_sparse_attention(q, k, v, mask, beside=beside, **call)
    elif name == "portable":
        needed = return_lse or sample is not None
        out, lse = portable_block_sparse_attention(q, k, v, mask, return_lse=needed, key_bias=key_bias, **call)
        if sample is not None:
            out, lse = join_sample((q, k, v), out, lse, mask, order, sample, call["scale"])
    else:
        out, lse = naive_block_sparse_attention(q, k, v, mask, key_bias=key_bias, sample=sample, **call)
    return (out, lse) if return_lse else out


def check_call(q, k, v, mask, order=None, key_bias=None, sample=None) -> None:
    """Raise a one-line ValueError unless the arguments of a block-sparse call fit together."""
    batches, queries, heads, keys = check_tensors(q, k, v, mask, "partitions")
    # Lists have the shape of the mask, and a mask made from lists need not draw its boolean form for a check.
    check_lanes("the mask", mask.kv_blocks()[1], (batches, heads, mask.query.count, mask.key.count), q.device)
    if order is not None:
        if queries != keys:
            raise ValueError(f"an order needs as many queries as keys, got {queries} and {keys}")
        if order.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"order must be int32, got {order.dtype}")
        check_lanes("order", order, (batches, heads, queries), q.device)
    if key_bias is not None:
        if key_bias.dtype != torch.float32:
            raise ValueError(f"key_bias must be torch.float32, got {key_bias.dtype}")
        check_lanes("key_bias", key_bias, (batches, heads, mask.key.count), q.device)
    if sample is not None:
        if key_bias is not None:
            raise ValueError("sample and key_bias do not go together: leave one out")
        check_sample(sample, mask, (batches, heads), q.device)
