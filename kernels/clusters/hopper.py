"""Attention between clusters of any size for Hopper (compute capability 9.x): its launch.

The kernel is `hopper_clusters_forward.py`, which needs Triton with Gluon; importing this file does not. It runs where
`dittools.kernels.capability.why_not_hopper` has no objection.
"""

from __future__ import annotations

import torch

from dittools.kernels.hopper_launch import REGISTERS, SLOT, tma_readable
from dittools.kernels.permute.dispatch import gather_tokens
from dittools.kernels.strides import lane_strides

TILE = 128
# Slots of 128 keys in the rings of K and of V: as many as fill the shared memory at head dim 128. One more than with
# even blocks: a slot of many small pieces takes longer to fill than one of few.
STAGES = 3
# What a tile with no more than 64 rows costs, of a whole one: the keys stream past it as well.
SHORT = 0.7
# Lists are as long as they may have to be, so lanes are taken as many at a time as fit.
LIST_BYTES = 512 << 20


def hopper_cluster_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask,
    *,
    order: torch.Tensor | None = None,
    key_order: torch.Tensor | None = None,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the kernels. K and V are brought into their order in one pass first; rows of q are gathered on the fly.

    A key that is not kept has no influence, so long as its value is finite.

    Args: as `clusters.dispatch.cluster_sparse_attention`, already validated, with D in {64, 128}, fp16 or
        bf16.

    Returns:
        out ``[B, Sq, H, D]`` in the dtype of q, and lse ``[B, H, Sq]``, fp32, natural log, in token order.
    """
    from dittools.kernels.clusters.hopper_forward import cluster_forward

    if key_order is not None:
        k, v = gather_tokens((k, v), key_order)
    out, lse, launches = launch_arguments(q, k, v, mask, scale, order)
    for programs, arguments, options in launches:
        cluster_forward[(programs,)](*arguments, **options)
    return out, lse


def launch_arguments(q, k, v, mask, scale, order=None):
    """(out, lse, launches) of a call with K and V in order; a launch is (programs, arguments, options).

    The results are allocated, not computed; lists of a launch are made when it is drawn.
    """
    batches, queries, heads, dim = q.shape
    out = torch.empty((batches, queries, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((batches, heads, queries), dtype=torch.float32, device=q.device)
    return out, lse, _launches(q, k, v, mask, scale, order, out, lse)


def _launches(q, k, v, mask, scale, order, out, lse):
    from dittools.kernels.clusters.hopper_lists import cut, piece_lists, query_tiles

    batches, queries, heads, dim = q.shape
    keys = k.shape[1]
    q = q if q.stride(-1) == 1 else q.contiguous()
    order = None if order is None else order.int().contiguous()
    table = cut(mask.key)
    tiles = query_tiles(mask.query, (mask.keep * mask.key.run_sizes[..., None, :]).sum(-1), TILE, SHORT)
    descriptors = [d for x in (k, v) for d in _descriptors(x)]
    options = {
        "D": dim,
        "BN": SLOT,
        "STAGES": STAGES,
        "HAS_ORDER": order is not None,
        "num_warps": 4,
        "maxnreg": REGISTERS,
    }
    lanes = batches * heads
    step = max(1, LIST_BYTES // (4 * mask.query.count * table.entry.shape[-1]))
    for first in range(0, lanes, step):
        some = range(first, min(first + step, lanes))
        lists = piece_lists(mask, table, some, heads)
        arguments = (
            q, *descriptors, out, lse, tiles, *lists, tiles if order is None else order,
            scale, queries, keys, heads, tiles.shape[-2], mask.query.count, lists.pieces.shape[-1],
            lists.live.shape[-2], first, *lane_strides(tiles), *lane_strides(order), *q.stride()[:3],
        )  # fmt: skip
        yield len(some) * tiles.shape[-2], arguments, options


def _descriptors(x: torch.Tensor) -> list:
    """Of K or V ``[B, S, H, D]``: boxes of 64, 32, 16 and 8 rows, 64 columns each."""
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    swizzled = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    x, strides = tma_readable(x)
    shape = [x.shape[0], x.shape[2], x.shape[1], x.shape[3]]
    return [TensorDescriptor(x, shape, strides, [1, 1, rows, 64], swizzled) for rows in (64, 32, 16, 8)]
