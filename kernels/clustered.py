"""Attention between clusters of queries and clusters of keys, each in an order of its own.

Clusters have any size, down to none. `cluster_sparse_attention` is what `block_sparse_attention` does with a
`dittools.clusters.ClusterMask`.
"""

from __future__ import annotations

import torch

from dittools.kernels.checks import check_lanes, check_tensors
from dittools.kernels.portable import _attend


def cluster_sparse_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None = None,
    key_order: torch.Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attention in which each query cluster visits only the key clusters that the mask keeps.

    Args:
        q: ``[B, Sq, H, D]``. k, v: ``[B, Sk, H, D]``. One dtype and device, any strides.
        mask: a `dittools.clusters.ClusterMask`.
        order: int32 ``[B or 1, H or 1, Sq]``, query position -> token; None when positions are tokens.
        key_order: the same for keys, ``[B or 1, H or 1, Sk]``; None: ``order``.
        scale, return_lse: as in `dittools.kernels.block_sparse_attention`.
        implementation: "hopper", "triton", "portable" or "naive"; chosen when None.

    Returns:
        As `dittools.kernels.block_sparse_attention`: out ``[B, Sq, H, D]`` in token order, and lse on demand.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    from dittools.kernels.dispatch import choose

    key_order = order if key_order is None else key_order
    check_clusters(q, k, v, mask, order, key_order)
    if scale is None:
        scale = q.shape[-1] ** -0.5
    elif not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number, got {scale}")
    name = choose(q, k, v, mask, order=key_order if order is None else order, implementation=implementation)
    return attend_clusters_by(name, q, k, v, mask, order=order, key_order=key_order, scale=scale, return_lse=return_lse)


def attend_clusters_by(
    name: str, q, k, v, mask, *, order=None, key_order=None, scale: float, return_lse: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`cluster_sparse_attention` by the implementation of this name, for callers that asked before: see
    `dittools.kernels.dispatch.attend_by`.
    """
    key_order = order if key_order is None else key_order
    call = {"order": order, "key_order": key_order, "scale": float(scale)}
    if name == "hopper":
        from dittools.kernels.hopper_clusters import hopper_cluster_attention

        out, lse = hopper_cluster_attention(q, k, v, mask, **call)
    elif name == "triton":
        from dittools.kernels.clustered_triton import triton_cluster_attention

        out, lse = triton_cluster_attention(q, k, v, mask, **call)
    elif name == "portable":
        out, lse = portable_cluster_attention(q, k, v, mask, return_lse=return_lse, **call)
    else:
        out, lse = naive_cluster_attention(q, k, v, mask, **call)
    return (out, lse) if return_lse else out


def naive_cluster_attention(q, k, v, mask, *, order=None, key_order=None, scale: float):
    """The oracle: one softmax per query cluster over the keys it keeps, in fp32.

    Args and returns: as `cluster_sparse_attention`, already validated, with the LSE.
    """
    batches, queries, heads, _ = q.shape
    out = torch.zeros_like(q, dtype=torch.float32)
    lse = torch.full((batches, heads, queries), -torch.inf, device=q.device)
    for b in range(batches):
        for h in range(heads):
            row_of = _of_lane(order, b, h, queries, q.device)
            column_of = _of_lane(key_order, b, h, k.shape[1], q.device)
            query_sizes, key_sizes, keep = (
                x.expand(batches, heads, *x.shape[2:])[b, h] for x in (mask.query.sizes(), mask.key.sizes(), mask.keep)
            )
            for m, rows in enumerate(row_of.split(query_sizes.tolist())):
                runs = column_of.split(key_sizes.tolist())
                columns = torch.cat([row_of[:0], *(runs[n] for n in range(len(runs)) if keep[m, n])])
                if len(rows) == 0 or len(columns) == 0:
                    continue
                logits = q[b, rows, h].float() @ k[b, columns, h].float().T * scale  # [bq, n]
                total = logits.logsumexp(-1, keepdim=True)  # [bq, 1]
                out[b, rows, h] = (logits - total).exp() @ v[b, columns, h].float()
                lse[b, h, rows] = total[:, 0]
    return out.to(q.dtype), lse


def portable_cluster_attention(
    q, k, v, mask, *, order=None, key_order=None, scale: float, return_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The same in PyTorch operators: one dense call a query cluster, over its gathered keys; nothing is padded.

    Keys and values are brought into the key order side by side, so that a kept run of clusters is one stretch
    of memory. Sizes go to the host: on a CPU that is free.

    Args and returns: as `cluster_sparse_attention`, already validated.
    """
    batches, queries, heads, dim = q.shape
    rows = _flat_rows(order, q)  # [lanes, Sq]
    columns = _flat_rows(key_order, k)  # [lanes, Sk]
    lanes = batches * heads
    in_order = q.reshape(-1, dim).index_select(0, rows.flatten()).view(lanes, queries, dim)
    pairs = torch.cat((k, v), -1).view(-1, 2 * dim)
    keep, query_sizes, labels = (
        x.expand(batches, heads, *x.shape[2:]).flatten(0, 1) for x in (mask.keep, mask.query.sizes(), mask.key.labels())
    )
    outs, lses = [], []
    for i, sizes in enumerate(query_sizes.tolist()):
        both = pairs.index_select(0, columns[i])  # [Sk, 2 D]
        kept = keep[i][:, labels[i]]  # [Mq, Sk]
        wanted = kept.nonzero()[:, 1].split(kept.sum(-1).tolist())
        for part, positions in zip(in_order[i].split(sizes), wanted, strict=True):
            if len(part) == 0:
                continue
            if len(positions) == 0:
                out, lse = torch.zeros_like(part), part.new_full((len(part),), -torch.inf, dtype=torch.float32)
            else:
                mine = (both if len(positions) == len(both) else both.index_select(0, positions))[None]
                out, lse = _attend(part[None], mine[..., :dim], mine[..., dim:], scale, None, return_lse)
                out, lse = out[0], None if lse is None else lse[0]
            outs.append(out)
            lses.append(lse)
    out = torch.cat(outs)
    out = torch.empty_like(out).index_copy(0, rows.flatten(), out).view(batches, queries, heads, dim)
    if not return_lse:
        return out, None
    lse = torch.cat(lses).view(batches, heads, queries)
    if order is not None:
        lse = torch.empty_like(lse).scatter(-1, order.expand(batches, heads, -1).long(), lse)
    return out, lse


def _flat_rows(order: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Where each position's vector lies in x seen as ``[B * S * H, D]``: int64 ``[B * H, S]``."""
    batches, tokens, heads, _ = x.shape
    order = torch.arange(tokens, device=x.device) if order is None else order.long()
    batch = torch.arange(batches, device=x.device)[:, None, None]
    head = torch.arange(heads, device=x.device)[:, None]
    return ((batch * tokens + order) * heads + head).flatten(0, 1)


def _of_lane(order: torch.Tensor | None, b: int, h: int, tokens: int, device: torch.device) -> torch.Tensor:
    if order is None:
        return torch.arange(tokens, device=device)
    return order[0 if order.shape[0] == 1 else b, 0 if order.shape[1] == 1 else h].long()


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
