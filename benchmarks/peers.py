"""Other people's block-sparse kernels, called as their authors mean them to be, where they are installed.

Each function takes q, k, v ``[1, S, H, D]`` and a `BlockMask` of one batch, and gives (call, module). The layout that a
peer likes best, its plan and its index format are made outside of what is timed. It raises ValueError for shapes the
peer does not take.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from dittools.benchmarks.dense import installed
from dittools.kernels.masks.block_mask import BlockMask

Call = Callable[[], object]


def flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> Call:
    """PyTorch's flex_attention, compiled, over lists of whole blocks."""
    from torch.nn.attention.flex_attention import BlockMask as FlexMask
    from torch.nn.attention.flex_attention import flex_attention

    if (mask.query.size, mask.key.size) != (128, 128):
        raise ValueError("it takes blocks of 128 x 128 here")
    counts, indices = _lists(mask, q.shape[2])
    if mask.query.tail != mask.query.size or mask.key.tail != mask.key.size:
        raise ValueError(f"it takes whole blocks here, and {mask.key.length} tokens leave a ragged one")
    none = torch.zeros_like(counts)
    lists = FlexMask.from_kv_blocks(
        none, torch.zeros_like(indices), counts, indices, BLOCK_SIZE=(128, 128),
        mask_mod=lambda b, h, i, j: i >= 0, seq_lengths=(q.shape[1], k.shape[1]), compute_q_blocks=False,
    )  # fmt: skip
    compiled = torch.compile(flex_attention, dynamic=False)
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return lambda: compiled(q, k, v, block_mask=lists).transpose(1, 2)


def fa4(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> Call:
    """FlashAttention 4 (CuTe) with its lists of whole blocks."""
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch
    from flash_attn.cute.interface import _flash_attn_fwd

    if (mask.query.size, mask.key.size) != (128, 128):
        raise ValueError("it takes blocks of 128 x 128 here")
    counts, indices = _lists(mask, q.shape[2])
    lists = BlockSparseTensorsTorch(
        mask_block_cnt=torch.zeros_like(counts), mask_block_idx=torch.zeros_like(indices),
        full_block_cnt=counts, full_block_idx=indices, block_size=(128, 128),
    )  # fmt: skip
    q, k, v = (x.contiguous() for x in (q, k, v))
    return lambda: _flash_attn_fwd(q, k, v, block_sparse_tensors=lists)[0]


def flashinfer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> Call:
    """FlashInfer's wrapper for blocks of any size, on its FlashAttention 3 backend: the one that SVG2 uses."""
    from flashinfer.sparse import VariableBlockSparseAttentionWrapper

    heads, dim = q.shape[2:]
    wrapper = VariableBlockSparseAttentionWrapper(
        torch.empty(128 << 20, dtype=torch.uint8, device=q.device), backend="fa3"
    )
    rows, columns = (part.sizes(q.device).int().expand(heads, -1).contiguous() for part in (mask.query, mask.key))
    wrapper.plan(
        block_mask_map=mask.keep[0].expand(heads, -1, -1).contiguous(), block_row_sz=rows, block_col_sz=columns,
        num_qo_heads=heads, num_kv_heads=heads, head_dim=dim, q_data_type=q.dtype,
    )  # fmt: skip
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (q, k, v))
    return lambda: wrapper.run(q, k, v).transpose(0, 1)[None]


def fastvideo(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> Call:
    """FastVideo's video sparse attention, 64 x 64 blocks."""
    from fastvideo_kernel import block_sparse_attn_from_indices

    if (mask.query.size, mask.key.size) != (64, 64) or mask.key.tail != 64:
        raise ValueError("it takes whole blocks of 64 x 64")
    counts, indices = _lists(mask, q.shape[2])
    sizes = mask.key.sizes(q.device).int()
    q, k, v = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    return lambda: block_sparse_attn_from_indices(q, k, v, indices, counts, sizes)[0].transpose(1, 2)


def mit(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask) -> Call:
    """Block-Sparse-Attention, on FlashAttention 2."""
    from block_sparse_attn import block_sparse_attn_func

    if (mask.query.size, mask.key.size) != (128, 128):
        raise ValueError("it takes blocks of 128 x 128")
    tokens, heads = q.shape[1:3]
    ends = torch.tensor([0, tokens], dtype=torch.int32, device=q.device)
    kinds = torch.ones(heads, dtype=torch.int32, device=q.device)
    keep = mask.keep.expand(-1, heads, -1, -1).contiguous()
    q, k, v = (x[0].contiguous() for x in (q, k, v))
    return lambda: block_sparse_attn_func(q, k, v, ends, ends, kinds, None, keep, tokens, tokens, 0.0, is_causal=False)[
        None
    ]


# name: (function, module, seconds until silence means a hang: some compile for minutes)
PEERS: dict[str, tuple[Callable[..., Call], str, float]] = {
    "flex": (flex, "torch.nn.attention.flex_attention", 120),
    "fa4-sparse": (fa4, "flash_attn.cute", 120),
    "flashinfer": (flashinfer, "flashinfer", 300),
    "fastvideo": (fastvideo, "fastvideo_kernel", 90),
    "block-sparse-attention": (mit, "block_sparse_attn", 60),
}


def candidates(device: torch.device) -> tuple[dict[str, tuple[Callable[..., Call], float]], dict[str, str]]:
    """Peers to try with their patience, and those that are not installed with the reason. None on a CPU."""
    able, absent = {}, {}
    for name, (make, module, patience) in PEERS.items():
        if device.type != "cuda":
            continue
        if installed(module):
            able[name] = make, patience
        else:
            absent[name] = f"{module} is not installed"
    return able, absent


def flash_kmeans(x: torch.Tensor, centroids: torch.Tensor, iterations: int) -> Call:
    """flash-kmeans: x ``[N, S, D]``, centroids ``[N, C, D]``."""
    from flash_kmeans import batch_kmeans_Euclid

    start = centroids.to(x.dtype)
    x = x.contiguous()
    return lambda: batch_kmeans_Euclid(x, start.shape[1], max_iters=iterations, tol=0.0, init_centroids=start)


def _lists(mask: BlockMask, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts ``[1, H, Mq]`` and indices ``[1, H, Mq, Nk]``, contiguous."""
    counts, indices = mask.kv_blocks()
    return counts.expand(-1, heads, -1).contiguous(), indices.expand(-1, heads, -1, -1).contiguous()
