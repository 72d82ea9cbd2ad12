"""The oracles of what stands for skipped blocks, and of the error that leaves."""

from __future__ import annotations

import torch

from dittools.kernels.residual.dispatch import Blocks, Means


def naive_residual_attention(q, out, lse, blocks: Blocks, means: Means, scale: float) -> torch.Tensor:
    """The oracle of `residual_attention`: one query after the other, in fp64."""
    merged = out.double().clone()
    heads, per = out.shape[2], means.keys.shape[1] // blocks.keep.shape[2]
    for lane, labels in enumerate(blocks.rows.tolist()):
        b, h = divmod(lane, heads)
        for s, m in enumerate(labels):
            skip = (~blocks.keep[lane, m] & (blocks.key_sizes[lane] > 0)).repeat_interleave(per)
            bias = means.bias[lane].expand(blocks.keep.shape[1], -1)[m].repeat_interleave(per)
            logits = means.keys[lane].double() @ q[b, s, h].double() * scale + bias
            weights = torch.cat((lse[b, h, s].double()[None], logits[skip])).softmax(0)
            values = means.values[lane][skip].double()
            if means.shift is not None:
                values = values + means.shift[lane, m]
            if skip.any():
                merged[b, s, h] = weights[0] * out[b, s, h] + weights[1:] @ values
    return merged.to(out.dtype)


def naive_block_approximation_error(queries, k, v, order, offsets, scale: float) -> torch.Tensor:
    """The oracle of `block_approximation_error`: run after run, the difference as it is written, in fp64."""
    batches, heads, rows, _ = queries.shape
    if order is None:
        order = torch.arange(k.shape[1], device=k.device)[None, None]
    order, offsets = (x.expand(batches, heads, -1).long() for x in (order, offsets))
    error = torch.zeros(batches, heads, rows, offsets.shape[-1] - 1, dtype=torch.float64, device=k.device)
    for b in range(batches):
        for h in range(heads):
            keys, values = (x[b, order[b, h], h].double() for x in (k, v))
            q = queries[b, h].double() * scale
            lse = (q @ keys.T).logsumexp(-1)
            for n, (first, stop) in enumerate(zip(offsets[b, h, :-1], offsets[b, h, 1:], strict=True)):
                if stop > first:
                    key, value = keys[first:stop], values[first:stop]
                    weight = (q @ key.T - lse[:, None]).exp()  # [M, size]
                    whole = (q @ key.mean(0) - lse).exp()  # [M]
                    off = weight[..., None] * value - whole[:, None, None] * value.mean(0)
                    error[b, h, :, n] = off.square().sum((-1, -2))
    return error
