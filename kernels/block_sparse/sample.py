"""Some keys at random in place of the blocks that a row skips, as more keys of the same call.

Positions are cut into stretches of equal length, r of them a key block, and one position is drawn in each. A row sees
those of the blocks that it skips, each with the weight of a stretch; one drawn past the end is no key. Every key is
drawn once in as many times as a stretch is long, ragged block included, so mass and output of what was skipped are
right on average.

There are several draws, and query blocks take turns at them: what all rows miss alike adds up in the layers after it,
and what each misses by itself averages out. Draws have no key in common, as long as a stretch has enough of them.

Sources: HyperAttention (arXiv 2310.05869) samples beside found blocks; stretches, the one weight of all, draws by turns
and the turns of steps by the golden section (a Kronecker sequence) are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from dittools.kernels.attn_merge import merge_rows
from dittools.kernels.checks import check_lanes
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.residual.dispatch import rows_at_a_time, rows_of
from dittools.kernels.upload import upload

MOST_OF_A_BLOCK = 32  # keys that may be drawn of one
DRAWS = 4  # at which query blocks take turns; more make a copy of more keys
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Sample:
    """Keys that stand for skipped blocks.

    Args:
        positions: int64 ``[draws, n]``, in the order of the call where it has one. Query block m sees draw m modulo
            their number; number i of a draw belongs to key block ``i // per``, and numbers ascend.
        counts: int32 ``[draws]``: how many of each draw are keys, from the first on; the others are some of these.
        per: keys drawn of each key block, a power of two; the last block may have fewer.
        weight: keys that each stands for.
        taken: int32 ``[B or 1, H or 1]``: how many of them, from the first on, a head sees at most. None: all.
    """

    positions: torch.Tensor
    counts: torch.Tensor
    per: int
    weight: float
    taken: torch.Tensor | None = None

    @property
    def bias(self) -> float:
        """What is added to their scaled logits: the natural logarithm of the weight."""
        return math.log(self.weight)

    def seen(self, row: int, batch: int = 0, head: int = 0) -> torch.Tensor:
        """Positions that a query block of a head sees, those of blocks that it keeps among them: int64. Waits."""
        draw = row % len(self.positions)
        count = int(self.counts[draw])
        if self.taken is not None:
            b, h = (i if size > 1 else 0 for i, size in zip((batch, head), self.taken.shape, strict=True))
            count = min(count, int(self.taken[b, h]))
        return self.positions[draw, :count]


def draw_sample(
    key: Partition,
    per: int,
    seed: int,
    turn: int = 0,
    device: torch.device | str = "cpu",
    *,
    draws: int = DRAWS,
) -> Sample:
    """`draw_samples` with one seed."""
    return draw_samples(key, per, (seed,), turn, device, draws=draws)[0]


@lru_cache(maxsize=8)
def draw_samples(
    key: Partition,
    per: int,
    seeds: tuple[int, ...],
    turn: int = 0,
    device: torch.device | str = "cpu",
    *,
    draws: int = DRAWS,
) -> tuple[Sample, ...]:
    """Draw ``per`` keys of each block by numbers of the host: every head, guidance branch and rank gets the same.

    Args:
        seeds: each of what belongs together, such as a layer. Those of many layers cost little more than one.
        turn: of the draws with one seed. They shift each point of the first by so many golden sections of its stretch,
            so that those which follow on one another fall far apart, and their mean nears that of all keys faster than
            that of as many free draws. Each turn by itself is as random as the first.
        draws: how many at most. They share a stretch evenly, so there are a power of two of them, and no more than it
            has keys.

    Raises:
        ValueError: when ``per`` is no power of two, or more than a block holds.
    """
    if per not in allowed(key.size):
        raise ValueError(f"keys drawn of a block of {key.size} must be one of {allowed(key.size)}, got {per}")
    stretch = key.size / per
    count = -(-key.length * per // key.size)  # stretches with a key
    draws = 1 << (max(1, min(draws, int(stretch))).bit_length() - 1)
    drawn = []
    for seed in seeds:
        made = torch.Generator().manual_seed(seed)
        points = (torch.rand(count, generator=made, dtype=torch.float64) + turn * GOLDEN) % 1
        # Which of its parts each draw has in a stretch: d -> (odd * d + first) mod draws.
        first = torch.randint(draws, (2, count), generator=made)
        drawn.append(torch.stack((points, first[0].double(), first[1] // 2 * 2 + 1.0)))
    numbers = upload(torch.stack(drawn, 1), torch.device(device))  # [3, seeds, count]
    with torch.inference_mode(False):
        points, first, odd = numbers.clone()[:, :, None]
        parts = (torch.arange(draws, device=device)[:, None] * odd + first) % draws
        points = (points + parts / draws) % 1
        positions = ((torch.arange(count, device=device) + points) * stretch).long()  # [seeds, draws, count]
        there = positions < key.length  # only of the last stretch some are not
        before = positions.roll(1, 2) if count > 1 else torch.zeros_like(positions)
        positions, counts = torch.where(there, positions, before), there.sum(2).int()
        return tuple(Sample(one, many, per, stretch) for one, many in zip(positions, counts, strict=True))


def allowed(size: int) -> list[int]:
    """How many keys can be drawn of blocks of a size: powers of two."""
    return [1 << i for i in range(MOST_OF_A_BLOCK.bit_length()) if 1 << i <= size]


def check_sample(sample: Sample, mask, lanes: tuple[int, int], device: torch.device) -> None:
    """Raise a one-line ValueError unless a sample fits a mask of even blocks."""
    key = mask.key
    if sample.per not in allowed(key.size):
        raise ValueError(f"sample.per must be one of {allowed(key.size)} for blocks of {key.size}, got {sample.per}")
    shape, dtype, most = list(sample.positions.shape), sample.positions.dtype, key.count * sample.per
    if dtype != torch.int64 or len(shape) != 2 or not shape[0] or shape[1] > most:
        raise ValueError(f"sample.positions must be int64 [draws, at most {most}], got {dtype} {shape}")
    if sample.counts.dtype != torch.int32 or sample.counts.shape != (shape[0],):
        found = f"{sample.counts.dtype} {list(sample.counts.shape)}"
        raise ValueError(f"sample.counts must be torch.int32 [{shape[0]}], got {found}")
    for name in ("positions", "counts"):
        if (at := getattr(sample, name).device) != device:
            raise ValueError(f"sample.{name} are on {at}, but q, k and v on {device}")
    if not 0 < sample.weight < math.inf:
        raise ValueError(f"sample.weight must be a positive number, got {sample.weight}")
    if sample.taken is not None:
        if sample.taken.dtype != torch.int32:
            raise ValueError(f"sample.taken must be torch.int32, got {sample.taken.dtype}")
        check_lanes("sample.taken", sample.taken[..., None], (*lanes, 1), device)


def join_sample(tensors, out, lse, mask, order, sample: Sample, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge a sample into what was computed without it, in a pass of its own in plain PyTorch. Nothing waits.

    Args:
        tensors: q, k and v, and out: ``[B, S, H, D]``. lse: fp32 ``[B, H, S]``, that of ``out``.
        mask, order: of the call.

    Returns:
        (out, lse), as `block_sparse_attention` gives them with this sample.
    """
    q, k, v = tensors
    (batches, queries, heads, _), count, draws = q.shape, sample.positions.shape[1], len(sample.positions)
    taken = None if sample.taken is None else sample.taken.expand(batches, heads).flatten()[:, None]  # [lanes, 1]
    number = torch.arange(count, device=k.device)
    keep = mask.keep.expand(batches, heads, -1, -1).flatten(0, 1)[..., number // sample.per]  # [lanes, Mq, n]
    merged, merged_lse = out.transpose(1, 2).flatten(0, 1).clone(), lse.flatten(0, 1).clone()
    most = max(1, rows_at_a_time(count, q.device) // (batches * heads))
    every = torch.arange(queries)
    for draw in range(min(draws, mask.query.count)):
        keys, values = (rows_of(x, tokens_at(order, sample.positions[draw])).float() for x in (k, v))  # [lanes, n, D]
        seen = sample.counts[draw] if taken is None else sample.counts[draw].minimum(taken)
        gone = keep | (number >= seen).expand(len(keep), count)[:, None]
        added = torch.where(gone, -torch.inf, sample.bias)  # [lanes, Mq, n]
        for some in every[every // mask.query.size % draws == draw].split(most):
            positions = upload(some, q.device)
            tokens = tokens_at(order, positions)
            logits = added[:, positions // mask.query.size].baddbmm_(rows_of(q, tokens).float(), keys.mT, alpha=scale)
            top = logits.amax(-1, keepdim=True)
            top = top.masked_fill(top.isneginf(), 0.0)  # of a row that sees none
            weights = logits.sub_(top).exp_()  # [lanes, r, n]
            total = weights.sum(-1, keepdim=True)
            extra, own = weights @ values / total.clamp_min(torch.finfo(total.dtype).tiny), top + total.log()
            at = tokens.expand(batches, heads, -1).flatten(0, 1)  # [lanes, r]
            to = at[..., None].expand(-1, -1, merged.shape[-1])
            both = merge_rows(merged.gather(1, to), merged_lse.gather(1, at), extra, own.squeeze(-1))
            merged.scatter_(1, to, both[0])
            merged_lse.scatter_(1, at, both[1])
    merged = merged.view(batches, heads, queries, -1).transpose(1, 2).contiguous()
    return merged, merged_lse.view(lse.shape)


def tokens_at(order: torch.Tensor | None, positions: torch.Tensor) -> torch.Tensor:
    """Tokens at positions: int64 ``[B or 1, H or 1, n]``."""
    if order is None:
        return positions[None, None]
    return order.long().gather(-1, positions.expand(*order.shape[:2], -1))
