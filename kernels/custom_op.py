"""Block-sparse attention as a custom op, so that torch.compile keeps a denoiser in one graph around it.

The op takes tensors and plain numbers only: masks arrive as lists. To the compiler it is opaque, and a new mask
of the same shape is a new tensor value, so that nothing is compiled again from step to step.
"""

from __future__ import annotations

import torch


def block_sparse_attention_op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    *,
    query_block: int,
    key_block: int,
    order: torch.Tensor | None = None,
    scale: float | None = None,
    key_bias: torch.Tensor | None = None,
    return_lse: bool = False,
    implementation: str | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """`dittools.kernels.block_sparse_attention` over lists, as `torch.ops.dittools.block_sparse_attention`.

    Args:
        q: ``[B, Sq, H, D]``. k, v: ``[B, Sk, H, D]``. Any strides.
        counts: int32 ``[B or 1, H or 1, Mq]``, and indices: int32 ``[B or 1, H or 1, Mq, L]``, as
            `dittools.kernels.lists` makes them.
        query_block, key_block: positions in a block; the last block may be ragged.
        order, scale, key_bias, return_lse, implementation: as in `dittools.kernels.block_sparse_attention`.

    Returns:
        out ``[B, Sq, H, D]``, contiguous, in the dtype of q. With ``return_lse``: (out, lse), lse fp32
        ``[B, H, Sq]``. There is no backward.

    Raises:
        ValueError: as `dittools.kernels.block_sparse_attention` and `dittools.blocks.BlockMask.from_lists`, when
            the op runs.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    out, lse = _op(q, k, v, counts, indices, query_block, key_block, scale, order, key_bias, implementation)
    return (out, lse) if return_lse else out


@torch.library.custom_op("dittools::block_sparse_attention", mutates_args=())
def _op(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    counts: torch.Tensor,
    indices: torch.Tensor,
    query_block: int,
    key_block: int,
    scale: float,
    order: torch.Tensor | None = None,
    key_bias: torch.Tensor | None = None,
    implementation: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    from dittools.blocks import BlockMask, Partition
    from dittools.kernels.dispatch import block_sparse_attention

    query, key = Partition(q.shape[1], query_block), Partition(k.shape[1], key_block)
    mask = BlockMask.from_lists(counts, indices, query, key)
    out, lse = block_sparse_attention(
        q, k, v, mask, order=order, scale=scale, key_bias=key_bias, return_lse=True, implementation=implementation
    )
    return out.contiguous(), lse.contiguous()


@_op.register_fake
def _(q, k, v, counts, indices, query_block, key_block, scale, order=None, key_bias=None, implementation=None):
    batches, queries, heads, dim = q.shape
    return q.new_empty((batches, queries, heads, dim)), q.new_empty((batches, heads, queries), dtype=torch.float32)
