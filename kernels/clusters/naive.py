"""The oracle of attention between clusters."""

from __future__ import annotations

import torch


def naive_cluster_attention(q, k, v, mask, *, order=None, key_order=None, scale: float):
    """The oracle of `cluster_sparse_attention` with the LSE: a softmax per query cluster over its keys, in fp32."""
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


def _of_lane(order: torch.Tensor | None, b: int, h: int, tokens: int, device: torch.device) -> torch.Tensor:
    if order is None:
        return torch.arange(tokens, device=device)
    return order[0 if order.shape[0] == 1 else b, 0 if order.shape[1] == 1 else h].long()
