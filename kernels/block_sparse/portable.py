"""Block-sparse attention in plain PyTorch, for the CPU and for any device that has no kernel of its own.

Query blocks that keep the same number of keys are stacked and attended in one batched call over their
gathered key blocks: nothing is padded and nothing is masked, so the time follows the density.

Few, large operators matter as much as few numbers: each one is a barrier among threads that share a machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

# On a CPU a gather that stays in cache is faster than one large one; a GPU wants few launches instead.
CPU_GATHER_BYTES = 8 << 20
MAX_GATHER_BYTES = 256 << 20


class _Piece(NamedTuple):
    """Query blocks that are attended in one call, over keys they share or hold each for itself."""

    blocks: slice  # of the sorted query blocks, g of them
    k: torch.Tensor  # [g or 1, keys, D]
    v: torch.Tensor  # [g or 1, keys, D]
    bias: torch.Tensor | None  # [g or 1, 1, keys]


def portable_block_sparse_attention(
    q, k, v, mask, *, order=None, scale: float, key_bias=None, return_lse: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`block_sparse_attention` with PyTorch operators, of validated arguments; the LSE is None unless asked for."""
    batches, queries, heads, dim = q.shape
    bq, mq = mask.query.size, mask.query.count
    kept, by_kept = _kept_keys(mask, batches, heads).sort(stable=True)  # [lanes * Mq], a lane: a head of a batch
    rows = _block_rows(order, q, mask.query).view(-1, bq)[by_kept]  # [lanes * Mq, bq]
    # One spare row takes what the positions past the end of a ragged query block would write.
    spare = batches * queries * heads
    out = q.new_empty(spare + 1, dim)
    lse = torch.full(rows.shape, -torch.inf, device=q.device) if return_lse else None

    q_blocks = q.reshape(-1, dim).index_select(0, rows.flatten() % spare).view(-1, bq, dim)
    for piece in _pieces(q, k, v, mask, order, key_bias, kept, by_kept):
        to = rows[piece.blocks].flatten()
        if piece.k.shape[1] == 0:
            out.index_fill_(0, to, 0.0)
            continue
        piece_q = q_blocks[piece.blocks].view(len(piece.k), -1, dim)
        piece_out, piece_lse = attend(piece_q, piece.k, piece.v, scale, piece.bias, return_lse)
        out.index_copy_(0, to, piece_out.view(-1, dim))
        if lse is not None:
            lse[piece.blocks] = piece_lse.view(-1, bq)

    if lse is not None:
        lse = torch.empty_like(lse).index_copy_(0, by_kept, lse)
        lse = lse.view(batches, heads, mq * bq)[..., :queries].contiguous()
        if order is not None:
            lse = torch.empty_like(lse).scatter_(-1, order.expand(batches, heads, -1).long(), lse)
    return out[:spare].view(batches, queries, heads, dim), lse


def _kept_keys(mask, batches: int, heads: int) -> torch.Tensor:
    """Keys that each query block keeps, ragged tail counted as it is: int64 ``[lanes * Mq]``."""
    keys = mask.kv_blocks()[0].long() * mask.key.size - mask.keep[..., -1].long() * (mask.key.size - mask.key.tail)
    return keys.expand(batches, heads, -1).flatten()


def token_rows(order: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Where each position's vector lies in x seen as ``[B * S * H, D]``: int64 ``[B, H, S]``."""
    batches, tokens, heads, _ = x.shape
    order = torch.arange(tokens, device=x.device) if order is None else order.long()
    batch = torch.arange(batches, device=x.device)[:, None, None]
    return (batch * tokens + order) * heads + torch.arange(heads, device=x.device)[:, None]


def _block_rows(order: torch.Tensor | None, x: torch.Tensor, partition) -> torch.Tensor:
    """`token_rows` of whole blocks, ``[B, H, count * size]``: positions past the end point just past x."""
    missing = partition.count * partition.size - x.shape[1]
    return torch.nn.functional.pad(token_rows(order, x), (0, missing), value=x.shape[:3].numel())


def _pieces(q, k, v, mask, order, key_bias, kept: torch.Tensor, by_kept: torch.Tensor) -> Iterator[_Piece]:
    """Cut the work into calls of bounded memory, each over query blocks with one number of kept keys."""
    bk, nk, mq = mask.key.size, mask.key.count, mask.query.count
    batches, tokens, heads, dim = k.shape
    lanes = batches * heads
    # Outside of autograd memory is written in place: fresh memory costs more in page faults than a copy does.
    in_place = not (torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)))
    # Positions past the end read any row: they are sliced off below.
    rows = _block_rows(order, k, mask.key).flatten() % (batches * tokens * heads)
    k_and_v = k.new_empty(2, lanes, nk * bk, dim) if in_place else None
    k_and_v = _select_both(k.reshape(-1, dim), v.reshape(-1, dim), rows, k_and_v).view(2, lanes, nk * bk, dim)
    blocks_of_both = k_and_v.view(2 * lanes * nk, bk * dim)
    scratch = None

    indices = mask.kv_blocks()[1].flatten(0, 2)
    list_of_block = torch.arange(len(indices), device=k.device).view(*mask.keep.shape[:3])
    list_of_block = list_of_block.expand(batches, heads, mq).flatten()[by_kept]  # [lanes * Mq]
    lane_of_block = by_kept // mq
    bias = None if key_bias is None else key_bias.expand(batches, heads, -1).flatten(0, 1)  # [lanes, Nk]

    for keys, start, stop in _runs(kept):
        n = -(-keys // bk)
        if n == 0:
            yield _Piece(slice(start, stop), k_and_v[0, :, :0], k_and_v[1, :, :0], None)
        elif n == nk:
            # Query blocks of one lane that keep everything share its keys where they lie: no gather.
            for lane, first, last in _runs(lane_of_block[start:stop]):
                mine = slice(lane, lane + 1)
                part_bias = None if bias is None else _spread(bias[mine], bk, keys)
                part = slice(start + first, start + last)
                yield _Piece(part, k_and_v[0, mine, :keys], k_and_v[1, mine, :keys], part_bias)
        else:
            step = _blocks_per_gather(k, n * bk)
            for first in range(start, stop, step):
                part = slice(first, min(first + step, stop))
                lane, columns = lane_of_block[part, None], indices[list_of_block[part], :n].long()  # [g, n]
                from_k = (lane * nk + columns).flatten()
                wanted = torch.cat((from_k, from_k + lanes * nk))
                if in_place and (scratch is None or len(scratch) < len(wanted)):
                    room = CPU_GATHER_BYTES // (bk * dim * k.element_size())
                    scratch = k.new_empty(max(len(wanted), room), bk * dim)
                room = scratch[: len(wanted)] if in_place else None
                both = torch.index_select(blocks_of_both, 0, wanted, out=room).view(2, -1, n * bk, dim)
                part_bias = None if bias is None else _spread(bias[lane, columns], bk, keys)
                yield _Piece(part, both[0, :, :keys], both[1, :, :keys], part_bias)


def _select_both(k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
    """The same rows of k and v, one after the other."""
    if out is None:
        return torch.stack((k.index_select(0, rows), v.index_select(0, rows)))
    for x, half in zip((k, v), out, strict=True):
        torch.index_select(x, 0, rows, out=half.view(-1, x.shape[-1]))
    return out


def _runs(values: torch.Tensor) -> Iterator[tuple[int, int, int]]:
    """(value, start, stop) of each run of equal values in a 1-D tensor."""
    found, sizes = values.unique_consecutive(return_counts=True)
    start = 0
    for value, size in zip(found.tolist(), sizes.tolist(), strict=True):
        yield value, start, start + size
        start += size


def _blocks_per_gather(k: torch.Tensor, keys: int) -> int:
    """Query blocks whose keys and values, ``keys`` of each, are gathered at a time."""
    each = 2 * keys * k.shape[-1] * k.element_size()
    if k.device.type != "cpu":
        return max(1, MAX_GATHER_BYTES // each)
    return max(1, CPU_GATHER_BYTES // each, min(torch.get_num_threads(), MAX_GATHER_BYTES // each))


def _spread(bias: torch.Tensor, block: int, keys: int) -> torch.Tensor:
    """Bias a block ``[g, n]`` to bias a key ``[g, 1, keys]``."""
    return bias.repeat_interleave(block, -1)[:, None, :keys]


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, bias: torch.Tensor | None, return_lse: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Dense attention of ``[g, n, D]`` tensors: out like q, lse ``[g, queries]`` where it is asked for."""
    if bias is None and not return_lse:
        return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=scale)[0], None
    dead = None
    if bias is not None:
        # Blocks biased to -inf count as skipped: a row with nothing else is an empty row. It is attended without its
        # bias and masked after that: -inf less -inf would be NaN in the gradients of everything it touches.
        dead = bias.isneginf().all(-1)  # [g, 1]
        bias = bias.masked_fill(dead[..., None], 0.0)
    if q.device.type == "cpu" and (bias is None or q.dtype == torch.float32):
        full_bias = None if bias is None else bias[None].expand(-1, -1, q.shape[1], -1)
        # The operator behind scaled_dot_product_attention, called by name because only it returns the LSE.
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = (x[0] for x in attend(q[None], k[None], v[None], attn_mask=full_bias, scale=scale))
        lse = lse.float()
    else:
        logits = q.float() @ k.float().transpose(1, 2) * scale  # [g, queries, keys]
        if bias is not None:
            logits = logits + bias
        lse = logits.logsumexp(-1)
        out = ((logits - lse[..., None]).exp() @ v.float()).to(q.dtype)
    if dead is not None:
        out = out.masked_fill(dead[..., None], 0.0)
        lse = lse.masked_fill(dead, -torch.inf)
    return out, lse
