"""Block-sparse attention as a custom op, so that torch.compile keeps a denoiser in one graph around it.

The op takes tensors and plain numbers only: masks arrive as lists. To the compiler it is opaque, and a new mask
of the same shape is a new tensor value, so that nothing is compiled again from step to step.
"""

from __future__ import annotations

import torch

from dittools.kernels.call import Call


def block_sparse_attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    kv_num_blocks: torch.Tensor,
    kv_indices: torch.Tensor,
    *,
    query_block: int,
    key_block: int,
    **options,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`dittools.kernels.block_sparse_attention` over lists, as `torch.ops.dittools.block_sparse_attention`.

    Args:
        q: ``[B, Sq, H, D]``. k, v: ``[B, Sk, H, D]``. Any strides.
        kv_num_blocks: int32 ``[B or 1, H or 1, Mq]``, and kv_indices: int32 ``[B or 1, H or 1, Mq, L]``, as
            `dittools.kernels.block_sparse.lists` makes them.
        query_block, key_block: positions in a block; the last block may be ragged.
        options: as in `dittools.kernels.block_sparse_attention`, but ``key_order`` and ``sample``.

    Returns:
        out ``[B, Sq, H, D]``, contiguous, in the dtype of q. With ``return_lse``: (out, lse), lse fp32
        ``[B, H, Sq]``. There is no backward.

    Raises:
        ValueError: as `dittools.kernels.block_sparse_attention` and `BlockMask.from_kv_blocks`, when the op runs.
    """
    call = Call(**options)
    if call.key_order is not None:
        raise ValueError("key_order goes with a ClusterMask, and the operator takes even blocks: leave it out")
    if call.sample is not None:
        raise ValueError("the operator takes no sample: call dittools.kernels.block_sparse_attention, or leave it out")
    scale = q.shape[-1] ** -0.5 if call.scale is None else float(call.scale)
    lists = kv_num_blocks, kv_indices, query_block, key_block
    out, lse = _op(q, k, v, *lists, scale, call.order, call.key_bias, call.implementation)
    return (out, lse) if call.return_lse else out


SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor kv_num_blocks, Tensor kv_indices, SymInt query_block, SymInt key_block, "
    "float scale, Tensor? order=None, Tensor? key_bias=None, str? implementation=None) -> (Tensor, Tensor)"
)


@torch.library.custom_op("dittools::block_sparse_attention", mutates_args=(), schema=SCHEMA)
def _op(q, k, v, *lists_and_options) -> tuple[torch.Tensor, torch.Tensor]:
    from dittools.kernels.block_sparse.dispatch import block_sparse_attention
    from dittools.kernels.masks.block_mask import BlockMask, Partition

    kv_num_blocks, kv_indices, query_block, key_block, scale, *options = lists_and_options
    query, key = Partition(q.shape[1], query_block), Partition(k.shape[1], key_block)
    mask = BlockMask.from_kv_blocks(kv_num_blocks, kv_indices, query, key)
    named = dict(zip(("order", "key_bias", "implementation"), options, strict=False))  # those left out are None
    out, lse = block_sparse_attention(q, k, v, mask, scale=scale, return_lse=True, **named)
    return out.contiguous(), lse.contiguous()


@_op.register_fake
def _(q, *_):
    batches, queries, heads, dim = q.shape
    return q.new_empty((batches, queries, heads, dim)), q.new_empty((batches, heads, queries), dtype=torch.float32)
