"""What skipped blocks would have added, from a mean key and value of each, or from some of its keys: cheap enough to
compute every time.

For a query q of query block m and the skipped key blocks n with means c_n and u_n:

    b_mn   = log of the softmax mass of block n as m's anchor sees it, less scale * anchor . c_n;  log(size) without
    lse'   = log sum_n exp(scale * q . c_n + b_mn)
    out'   = sum_n exp(scale * q . c_n + b_mn - lse') u_n + d_m

merged with the computed part by LSE. The shift d_m is what makes out' exact at the anchor, the mean query of m.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.kernels.attn_merge import merge_rows
from dittools.kernels.capability import why_not_triton_residual
from dittools.kernels.choice import picks_triton
from dittools.kernels.counting_sort.dispatch import offsets_of, runs_of_positions
from dittools.kernels.segment_mean.dispatch import segment_means

# Logits of a chunk of rows. A CPU wants them in its cache.
CHUNK_BYTES = 256 << 20
CPU_CHUNK_BYTES = 2 << 20


class Blocks(NamedTuple):
    """Blocks or clusters of both sides: what a mask and its orders are in every lane (head of a batch)."""

    keep: torch.Tensor  # bool [lanes, Mq, Nk]
    sizes: tuple[int, int, int, int]  # B, H, Sq, Sk
    order: torch.Tensor | None  # [B or 1, H or 1, Sq], position -> token, in which a query block is a run
    offsets: torch.Tensor  # int32 [B or 1, H or 1, Mq + 1], where those runs begin and end
    key_order: torch.Tensor | None  # [B or 1, H or 1, Sk], in which a key block is a run
    key_offsets: torch.Tensor  # int32 [B or 1, H or 1, Nk + 1]

    @classmethod
    def of(cls, plan, q: torch.Tensor) -> Blocks:
        """From a `dittools.methods.base.Plan` for queries ``[B, S, H, D]``."""
        return cls.of_mask(plan.mask, q, plan.order, plan.key_order)

    @classmethod
    def of_mask(cls, mask, q: torch.Tensor, order=None, key_order=None) -> Blocks:
        """From a mask and its orders, as `dittools.kernels.block_sparse_attention` takes them."""
        batches, _, heads, _ = q.shape
        return cls(
            mask.keep.expand(batches, heads, -1, -1).flatten(0, 1),
            (batches, heads, mask.query.length, mask.key.length),
            order,
            _offsets(mask.query, q.device),
            order if key_order is None else key_order,
            _offsets(mask.key, q.device),
        )

    @property
    def rows(self) -> torch.Tensor:
        """The query block of each token: int64 ``[lanes, Sq]``. Made when asked for; the Triton path never does."""
        return _labels(self.order, self.offsets, self.sizes[:2], self.sizes[2])

    @property
    def columns(self) -> torch.Tensor:
        """The key block of each token: int64 ``[lanes, Sk]``, as `rows`."""
        return _labels(self.key_order, self.key_offsets, self.sizes[:2], self.sizes[3])

    @property
    def key_sizes(self) -> torch.Tensor:
        """Keys in each block: int32 ``[lanes, Nk]``."""
        return self.key_offsets.diff(dim=-1).expand(*self.sizes[:2], -1).flatten(0, 1)


class Means(NamedTuple):
    """What stands for the key blocks of each lane: their means, fp32, or r keys of each, in the dtype of k."""

    keys: torch.Tensor  # [lanes, Nk, D], or [lanes, Nk * r, D] block by block
    values: torch.Tensor  # as keys
    bias: torch.Tensor  # [lanes, Mq or 1, Nk], -inf where a block is empty
    shift: torch.Tensor | None  # [lanes, Mq, D]


def summarise(k: torch.Tensor, v: torch.Tensor, blocks: Blocks, *, implementation: str | None = None) -> Means:
    """Mean key and value of every key block, with the bias log(size).

    Args:
        k, v: ``[B, S, H, D]``.
        implementation: as in `dittools.kernels.segment_means`.
    """
    means = segment_means((k, v), blocks.key_order, blocks.key_offsets, implementation=implementation)
    return Means(*(x.flatten(0, 1) for x in means), blocks.key_sizes.float().log()[:, None], None)


def calibrate_at_centroid(
    q, k, v, blocks: Blocks, means: Means, scale: float, *, implementation: str | None = None
) -> Means:
    """Bias and shift that make mass and output of the skipped blocks exact at the mean query of each query block.

    One query a block against all keys: Mq / S of dense attention.

    Args:
        q, k, v: ``[B, S, H, D]``.
        implementation: as in `residual_attention`. The Triton kernel rounds the mean query to the dtype of q.
    """
    lanes, rows, columns = blocks.keep.shape
    anchors = segment_means(q, blocks.order, blocks.offsets, implementation=implementation)
    anchors = anchors.flatten(0, 1)  # [lanes, Mq, D]
    if picks_triton(implementation, q, reason=why_not_triton_residual(q)):
        from dittools.kernels.residual.triton import triton_calibrate_at_centroid

        anchors = anchors.to(q.dtype)
        mass, parts, value = triton_calibrate_at_centroid(anchors, k, v, blocks, scale)
        total = parts.logsumexp(0)  # [lanes, Mq]
        total = total.masked_fill(total.isneginf(), 0.0)  # of a row that skips nothing: all its weights are 0
        weight = mass.masked_fill(blocks.keep, -torch.inf).sub_(total[..., None]).exp_()  # [lanes, Mq, Nk]
        bias = mass.baddbmm_(anchors.float(), means.keys.transpose(1, 2), alpha=-scale)
        # What the splits of the keys gave, by their shares, less what the means give.
        shift = value.mul_((parts - total).exp()[..., None]).sum(0)
        return means._replace(bias=bias, shift=shift.baddbmm_(weight, means.values, alpha=-1))
    anchors = anchors * scale
    keys, values, labels = _by_lane(k), _by_lane(v), blocks.columns
    bias = torch.empty(lanes, rows, columns, device=q.device)
    shift = torch.empty(lanes, rows, v.shape[-1], device=q.device)
    for lane, part in _chunks(lanes, rows, k.shape[1], q.device):
        label, skip = labels[lane], ~blocks.keep[lane, part]
        logits = anchors[lane, part] @ keys[lane].float().T  # [m, S]
        # Relative to the largest skipped one: what is kept may be far above, and must not drown the rest.
        logits.masked_fill_(~skip[:, label], -torch.inf)
        top = logits.amax(-1, keepdim=True)
        top = top.masked_fill(top.isneginf(), 0.0)
        weight = (logits - top).exp()
        mass = torch.zeros(len(weight), columns, device=q.device).index_add_(1, label, weight)  # [m, Nk]
        total = mass.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        shift[lane, part] = (weight @ values[lane].float() - mass @ means.values[lane]) / total
        bias[lane, part] = mass.log() + top - anchors[lane, part] @ means.keys[lane].T
    return means._replace(bias=bias, shift=shift)


def residual_attention(
    q, out, lse, blocks: Blocks, means: Means, scale: float, *, implementation: str | None = None
) -> torch.Tensor:
    """Merge the skipped blocks into an output.

    Args:
        q, out: ``[B, S, H, D]``. lse: fp32 ``[B, H, S]``, natural log, that of ``out``.
        implementation: "triton" or "portable"; chosen when None. The Triton kernel rounds the means to the dtype of q.

    Returns:
        ``[B, S, H, D]`` in the dtype of out. A row that skips nothing stays as it is.
    """
    bias = means.bias.masked_fill(blocks.keep, -torch.inf)  # [lanes, Mq, Nk]
    if picks_triton(implementation, q, reason=why_not_triton_residual(q)):
        from dittools.kernels.residual.triton import triton_residual_attention

        return triton_residual_attention(q, out, lse, blocks, bias, means, scale)
    return _portable_residual_attention(q, out, lse, blocks, bias, means, scale)


def _portable_residual_attention(
    q, out, lse, blocks: Blocks, bias: torch.Tensor, means: Means, scale: float
) -> torch.Tensor:
    """`residual_attention` in plain PyTorch, by a bias ``[lanes, Mq, Nk]`` that is -inf where blocks are kept."""
    tokens, heads = out.shape[1:3]
    queries, computed, base, rows = _by_lane(q), _by_lane(out), lse.flatten(0, 1), blocks.rows
    merged = torch.empty(out.shape, dtype=out.dtype, device=out.device)
    into = merged.transpose(1, 2)  # [B, H, S, D]
    columns = means.keys.shape[1]
    per = columns // bias.shape[-1]
    for lane, part in _chunks(len(queries), tokens, columns, q.device):
        row = rows[lane, part]
        added = bias[lane] if per == 1 else bias[lane].repeat_interleave(per, -1)
        logits = torch.addmm(added[row], queries[lane, part].float(), means.keys[lane].float().T, alpha=scale)
        own = logits.logsumexp(-1, keepdim=True)  # [s, 1]
        extra = (logits - own.masked_fill(own.isneginf(), 0.0)).exp() @ means.values[lane].float()
        if means.shift is not None:
            extra = extra + means.shift[lane][row]
        one, _ = merge_rows(computed[lane, part], base[lane, part], extra, own.squeeze(-1))
        into[lane // heads, lane % heads, part] = one
    return merged


def _offsets(partition, device) -> torch.Tensor:
    """Where the blocks of a partition begin and end: int32 ``[B or 1, H or 1, M + 1]``."""
    if hasattr(partition, "run_sizes"):
        return partition.offsets()
    return offsets_of(partition.sizes(device).int()[None, None])


def _labels(order, offsets, lanes: tuple[int, int], length: int) -> torch.Tensor:
    """The run of each token: int64 ``[lanes, S]``."""
    at = runs_of_positions(offsets, length).long().expand(*lanes, -1)
    if order is not None:
        at = torch.empty_like(at).scatter_(-1, order.expand(*lanes, -1).long(), at)
    return at.flatten(0, 1)


def _by_lane(x: torch.Tensor) -> torch.Tensor:
    """``[B, S, H, D]`` as ``[B * H, S, D]``."""
    return x.transpose(1, 2).flatten(0, 1)


def rows_of(x: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Rows of ``[B, S, H, D]`` by tokens ``[B or 1, H or 1, n]``: ``[B * H, n, D]``."""
    if tokens.shape[:2] == (1, 1):
        return x.index_select(1, tokens[0, 0]).transpose(1, 2).flatten(0, 1)
    tokens = tokens.expand(x.shape[0], x.shape[2], -1)[..., None].expand(-1, -1, -1, x.shape[-1])
    return x.transpose(1, 2).gather(2, tokens).flatten(0, 1)


def rows_at_a_time(columns: int, device: torch.device) -> int:
    """Rows whose logits stay small."""
    return max(1, (CPU_CHUNK_BYTES if device.type == "cpu" else CHUNK_BYTES) // (4 * columns))


def _chunks(lanes: int, rows: int, columns: int, device: torch.device):
    """(lane, rows) whose logits stay small."""
    step = rows_at_a_time(columns, device)
    for lane in range(lanes):
        yield from ((lane, slice(i, min(i + step, rows))) for i in range(0, rows, step))
