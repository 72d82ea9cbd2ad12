"""The error that remains where the mean key and mean value of a run stand in for its keys, as some queries see it.

For a query q, a run n of keys k_t with values v_t, its means c and u, and lse over all keys of the lane:

    error_n = sum_t |w_t v_t - w u|^2 = sum_t w_t^2 |v_t|^2 - 2 w sum_t w_t (v_t . u) + size w^2 |u|^2
    w_t = exp(scale * q . k_t - lse),  w = exp(scale * q . c - lse)
"""

from __future__ import annotations

import torch

from dittools.kernels.capability import why_not_triton_residual
from dittools.kernels.choice import picks_triton
from dittools.kernels.counting_sort.dispatch import runs_of_positions
from dittools.kernels.residual.dispatch import rows_at_a_time
from dittools.kernels.segment_mean.dispatch import segment_means


def block_approximation_error(
    queries: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    order: torch.Tensor | None,
    offsets: torch.Tensor,
    scale: float,
    *,
    implementation: str | None = None,
) -> torch.Tensor:
    """Squared error of each run of keys for each query, relative to the squared softmax sum of the query.

    Args:
        queries: fp32 ``[B, H, M, D]``, for example means of query clusters.
        k, v: ``[B, S, H, D]`` in token order, any strides.
        order: int32 ``[B or 1, H or 1, S]``, position -> token; None: positions are tokens.
        offsets: int32 ``[B or 1, H or 1, N + 1]`` from 0 to S, where runs begin and end; a run may be empty.
        scale: factor on the logits.
        implementation: "triton" or "portable"; chosen when None. The Triton kernel rounds the queries to the dtype of
            k, and makes logits, sums and means of them in fp32: a run's mean logit is ``scale * q . c``.

    Returns:
        fp32 ``[B, H, M, N]``, at least 0, and 0 where a run is empty. Source: SVG-EAR (arXiv 2603.08982).

    Raises:
        ValueError: when ``implementation`` cannot run.
    """
    if picks_triton(implementation, k, v, queries, reason=why_not_triton_residual(k)):
        from dittools.kernels.residual.error_triton import triton_block_approximation_error

        return triton_block_approximation_error(queries, k, v, order, offsets, scale)
    return _portable(queries, k, v, order, offsets, scale)


def _portable(queries, k, v, order, offsets, scale: float) -> torch.Tensor:
    batches, heads, rows, _ = queries.shape
    tokens, runs = k.shape[1], offsets.shape[-1] - 1
    every = (batches, heads, -1)
    labels = runs_of_positions(offsets, tokens).expand(every)
    sizes = offsets.diff(dim=-1).expand(every)
    order = None if order is None else order.expand(every)
    key_means, value_means = segment_means((k, v), order, offsets, implementation="portable")
    error = torch.empty(batches, heads, rows, runs, device=k.device)
    step = rows_at_a_time(tokens, k.device)
    for b in range(batches):
        for h in range(heads):
            keys, values = (x[b, :, h] for x in (k, v))
            if order is not None:
                keys, values = (x.index_select(0, order[b, h].long()) for x in (keys, values))
            keys, values = keys.float(), values.float()
            label, mean = labels[b, h], value_means[b, h]
            across, norms = (values * mean[label]).sum(-1), values.square().sum(-1)  # [S]
            far = sizes[b, h] * mean.square().sum(-1)  # [N]
            for i in range(0, rows, step):
                q = queries[b, h, i : i + step] * scale
                logits, middle = q @ keys.T, q @ key_means[b, h].T  # [m, S], [m, N]
                total = logits.logsumexp(-1, keepdim=True)
                weight, whole = (logits - total).exp(), (middle - total).exp()
                own, shared = (_per_run(x, label, runs) for x in (weight.square() * norms, weight * across))
                error[b, h, i : i + step] = own - 2 * whole * shared + whole.square() * far
    return error.clamp_min_(0).mul_(sizes[..., None, :] > 0)


def _per_run(x: torch.Tensor, label: torch.Tensor, count: int) -> torch.Tensor:
    """Sums over the keys of each run: ``[m, S]`` -> ``[m, count]``."""
    return x.new_zeros(len(x), count).index_add_(1, label, x)
