"""Attention between clusters in plain PyTorch."""

from __future__ import annotations

import torch

from dittools.kernels.block_sparse.portable import attend, token_rows


def portable_cluster_attention(
    q, k, v, mask, *, order=None, key_order=None, scale: float, return_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`cluster_sparse_attention` as one dense call a query cluster, over its gathered keys; nothing is padded.

    Keys and values are brought into the key order side by side, so that a kept run of clusters is one stretch
    of memory. Sizes go to the host: on a CPU that is free.
    """
    batches, queries, heads, dim = q.shape
    rows = token_rows(order, q).flatten(0, 1)  # [lanes, Sq]
    columns = token_rows(key_order, k).flatten(0, 1)  # [lanes, Sk]
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
                out, lse = attend(part[None], mine[..., :dim], mine[..., dim:], scale, None, return_lse)
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
