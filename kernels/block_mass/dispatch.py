"""Measured block mass: how much of the softmax each block of key positions holds, exactly."""

from __future__ import annotations

import torch

from dittools.kernels.block_mass.hopper import hopper_block_mass, hopper_lse
from dittools.kernels.capability import why_not_triton_lse
from dittools.kernels.checks import check_alike
from dittools.kernels.choice import choose_mass, picks_hopper_mass, picks_triton
from dittools.kernels.segment_mean.pooling import reduce_blocks

# Logits of a chunk of query rows against all keys. A CPU wants them in its cache.
CHUNK_BYTES = 256 << 20
CPU_CHUNK_BYTES = 2 << 20


def measure_block_mass(
    q: torch.Tensor,
    k: torch.Tensor,
    query,
    key,
    *,
    scale: float | None = None,
    lse: torch.Tensor | None = None,
    passes: int = 2,
    implementation: str | None = None,
) -> torch.Tensor:
    """Sums of softmax weights over each (query block, key block), without ever holding an S x S tensor.

    Args:
        q: ``[B, Sq, H, D]``. k: ``[B, Sk, H, D]``, same dtype and device. Any strides.
        query, key: `Partition` of Sq and of Sk.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        lse: fp32 ``[B, H, Sq]``, log-sum-exp of each row's scaled logits in natural log, as
            `dittools.kernels.block_sparse_attention` returns it. Saves one of two passes. Of a part of the
            keys, it gives masses relative to that part; rows at -inf count nothing.
        passes: over the logits in the Triton path, where ``lse`` is not given. 1 takes up to
            `block_mass_parts_triton.PART_BYTES` of memory more in place of the second.
        implementation: "hopper", "triton" or "portable"; chosen when None.

    Returns:
        fp32 ``[B, H, Mq, Nk]``. Without ``lse`` each row of blocks sums to the number of queries in its query
        block, so that a head sums to Sq: divide by `query.sizes()` for the mean over queries.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    _check(q, k, query, key, lse)
    if passes not in (1, 2):
        raise ValueError(f"passes must be 1 or 2, got {passes!r}")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    name = choose_mass(q, k, query, key, known=lse is not None, implementation=implementation)
    if name == "hopper":
        return hopper_block_mass(q, k, query, key, scale, lse)
    if name == "triton":
        if passes == 1 and lse is None:
            from dittools.kernels.block_mass.one_pass_triton import triton_block_mass_parts

            return triton_block_mass_parts(q, k, query, key, scale)
        from dittools.kernels.block_mass.triton import triton_block_mass

        return triton_block_mass(q, k, query, key, scale, lse)

    batches, _, heads, _ = q.shape
    budget = CPU_CHUNK_BYTES if q.device.type == "cpu" else CHUNK_BYTES
    blocks = max(1, budget // (4 * key.length * query.size))
    mass = torch.empty(batches, heads, query.count, key.count, device=q.device)
    for b in range(batches):
        for h in range(heads):
            keys = k[b, :, h].float().T  # [D, Sk]
            for i in range(0, query.count, blocks):
                rows = slice(i * query.size, min((i + blocks) * query.size, query.length))
                logits = (q[b, rows, h].float() * scale) @ keys  # [rows, Sk]
                if lse is None:
                    weights = logits.softmax(-1)
                else:
                    known = lse[b, h, rows, None]
                    weights = logits.sub_(known.masked_fill(known.isneginf(), torch.inf)).exp_()
                part = type(query)(rows.stop - rows.start, query.size)
                of_rows = reduce_blocks(weights, part, 0, torch.sum)  # [query blocks, Sk]
                mass[b, h, i : i + blocks] = reduce_blocks(of_rows, key, 1, torch.sum)
    return mass


def measure_lse(
    q: torch.Tensor, k: torch.Tensor, *, scale: float | None = None, implementation: str | None = None
) -> torch.Tensor:
    """Log-sum-exp of each query's logits over all keys: the first of the two passes of `measure_block_mass`.

    Args:
        q: ``[B, Sq, H, D]``. k: ``[B, Sk, H, D]``, same dtype and device. Any strides.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        implementation: "hopper", "triton" or "portable"; chosen when None.

    Returns:
        fp32 ``[B, H, Sq]``, natural log. Nothing of size Sq x Sk is held.

    Raises:
        ValueError: when shapes, dtypes or devices do not fit together, or ``implementation`` cannot run.
    """
    _check_pair(q, k)
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if picks_hopper_mass(implementation, q, k, "two passes"):
        return hopper_lse(q, k, scale)
    if picks_triton(implementation, q, k, reason=why_not_triton_lse(q)):
        from dittools.kernels.block_mass.triton import triton_lse

        return triton_lse(q, k, scale)
    batches, queries, heads, _ = q.shape
    budget = CPU_CHUNK_BYTES if q.device.type == "cpu" else CHUNK_BYTES
    rows = max(1, budget // (4 * k.shape[1]))
    lse = torch.empty(batches, heads, queries, device=q.device)
    for b in range(batches):
        for h in range(heads):
            keys = k[b, :, h].float().T  # [D, Sk]
            for i in range(0, queries, rows):
                lse[b, h, i : i + rows] = ((q[b, i : i + rows, h].float() * scale) @ keys).logsumexp(-1)
    return lse


def _check(q: torch.Tensor, k: torch.Tensor, query, key, lse: torch.Tensor | None) -> None:
    _check_pair(q, k)
    if (query.length, key.length) != (q.shape[1], k.shape[1]):
        raise ValueError(
            f"the partitions are of {query.length} queries and {key.length} keys, "
            f"but q has {q.shape[1]} tokens and k has {k.shape[1]}"
        )
    want = (q.shape[0], q.shape[2], q.shape[1])
    if lse is not None and (tuple(lse.shape) != want or lse.dtype != torch.float32 or lse.device != q.device):
        raise ValueError(
            f"lse must be torch.float32 {list(want)} on {q.device}, got {lse.dtype} {list(lse.shape)} on {lse.device}"
        )


def _check_pair(q: torch.Tensor, k: torch.Tensor) -> None:
    check_alike(q=q, k=k)
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"k {list(k.shape)} does not go with q {list(q.shape)}")
