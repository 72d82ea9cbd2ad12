"""Some keys of every block at random, which stand for it where it is skipped.

A block of n keys is cut into r stretches of n / r, and one point is drawn in each: the key it falls into enters with
the bias log(n / r). Every key is drawn r / n times on average, also where stretches end inside of one, so the sum of
weights, and of weights times values, is right on average whatever the keys are. Source: HyperAttention (arXiv
2310.05869) samples uniformly; the stretches take what varies between them out of the variance, and a fixed stride in
their place would see the same phase of a raster's rows in every block.
"""

from __future__ import annotations

import torch

from dittools.kernels.residual.dispatch import Blocks, Means, rows_of


def sampled_keys(k: torch.Tensor, v: torch.Tensor, blocks: Blocks, draws: torch.Tensor) -> Means:
    """Keys and values of every key block, for `residual_attention`.

    Args:
        k, v: ``[B, S, H, D]``.
        blocks: of the mask; which of them a query block skips does not matter here.
        draws: fp32 ``[Nk, r]`` in [0, 1), on the device of k: where in its stretch each point lies. All heads and
            batches share it; their orders take it to keys of their own.

    Returns:
        Keys and values ``[B * H, Nk * r, D]`` in the dtype of k and the bias of each block, -inf of an empty one.
    """
    per = draws.shape[1]
    batches, length, heads, _ = k.shape
    sizes = blocks.key_offsets.diff(dim=-1)  # [B or 1, H or 1, Nk]
    at = torch.arange(per, device=k.device) + draws  # [Nk, r]
    within = (at * (sizes[..., None] / per)).long()  # [B or 1, H or 1, Nk, r]
    within = torch.minimum(within, (sizes[..., None] - 1).clamp_min(0))  # rounding may reach the next block
    chosen = (blocks.key_offsets[..., :-1, None] + within).clamp_max(length - 1).flatten(-2)
    if blocks.key_order is not None:
        order = blocks.key_order
        lanes = [max(x, y) for x, y in zip(order.shape[:2], chosen.shape[:2], strict=True)]
        chosen = order.expand(*lanes, -1).long().gather(-1, chosen.expand(*lanes, -1))
    keys, values = (rows_of(x, chosen) for x in (k, v))
    bias = (sizes / per).log().expand(batches, heads, -1)
    return Means(keys, values, bias.flatten(0, 1)[:, None], None)
