"""Block-sparse attention as the definition says it, in fp32: the oracle for every other implementation."""

from __future__ import annotations

import torch


def naive_block_sparse_attention(
    q, k, v, mask, *, order=None, scale: float, key_bias=None, sample=None
) -> tuple[torch.Tensor, torch.Tensor]:
    """One softmax per query block over the keys it keeps, in fp32: `block_sparse_attention` with the LSE."""
    batches, queries, heads, _ = q.shape
    out = torch.zeros_like(q, dtype=torch.float32)
    lse = torch.full((batches, heads, queries), -torch.inf, device=q.device)
    keep = mask.keep.expand(batches, heads, -1, -1)
    key_block = torch.arange(mask.key.length, device=q.device) // mask.key.size  # [Sk]
    raster = torch.arange(max(queries, k.shape[1]), device=q.device)
    for b in range(batches):
        for h in range(heads):
            tokens = raster if order is None else order.expand(batches, heads, -1)[b, h].long()  # [S]
            for m in range(mask.query.count):
                rows = tokens[:queries][m * mask.query.size : (m + 1) * mask.query.size]  # [bq]
                bias = None if key_bias is None else key_bias.expand(batches, heads, -1)[b, h]  # [Nk]
                seen = keep[b, h, m] if bias is None else keep[b, h, m] & ~bias.isneginf()
                kept = seen[key_block]  # [Sk]
                columns = tokens[: mask.key.length][kept]  # [n]
                added = None if bias is None else bias[key_block][kept]
                if sample is not None:
                    more = sample.seen(m, b, h)
                    more = more[~seen[more // mask.key.size]]
                    added = (torch.arange(len(columns) + len(more), device=q.device) >= len(columns)) * sample.bias
                    columns = torch.cat((columns, tokens[more]))
                if len(columns) == 0:
                    continue
                logits = q[b, rows, h].float() @ k[b, columns, h].float().T * scale  # [bq, n]
                if added is not None:
                    logits += added
                total = logits.logsumexp(-1, keepdim=True)  # [bq, 1]
                out[b, rows, h] = (logits - total).exp() @ v[b, columns, h].float()  # [bq, D]
                lse[b, h, rows] = total[:, 0]
    return out.to(q.dtype), lse
