"""Some keys at random in place of the blocks that a row skips, as more keys of the same call.

Positions are cut into stretches of equal length, r of them a key block, and one position is drawn in each. A row sees
those of the blocks that it skips, each with the weight of a stretch; one drawn past the end is no key. Every key is
drawn once in as many times as a stretch is long, ragged block included, so mass and output of what was skipped are
right on average. Sources: HyperAttention (arXiv 2310.05869) samples beside found blocks; stretches, the one weight of
all, and turns by the golden section (a Kronecker sequence) are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from dittools.kernels.checks import check_lanes
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.residual.dispatch import Blocks, Means, portable_residual_attention, rows_of
from dittools.kernels.upload import upload

MOST_OF_A_BLOCK = 32  # keys that may be drawn of one
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, eq=False)
class Sample:
    """Keys that stand for skipped blocks.

    Args:
        positions: int64 ``[n]``, ascending, in the order of the call where it has one; number i belongs to key block
            ``i // per``. There may be none.
        per: keys drawn of each key block, a power of two; the last block may have fewer.
        weight: keys that each stands for.
        taken: int32 ``[B or 1, H or 1]``: how many of them, from the first on, a head sees. None: all.
    """

    positions: torch.Tensor
    per: int
    weight: float
    taken: torch.Tensor | None = None

    @property
    def bias(self) -> float:
        """What is added to their scaled logits: the natural logarithm of the weight."""
        return math.log(self.weight)


@lru_cache(maxsize=8)
def draw_sample(key: Partition, per: int, seed: int, turn: int = 0, device: torch.device | str = "cpu") -> Sample:
    """Draw ``per`` keys of each block of a partition, on the host: every head, branch and rank gets the same.

    Args:
        seed: of what belongs together.
        turn: of the draws with one seed. They shift each point of the first by so many golden sections of its stretch,
            so that those which follow on one another fall far apart, and their mean nears that of all keys faster than
            that of as many free draws. Each turn by itself is as random as the first.

    Raises:
        ValueError: when ``per`` is no power of two, or more than a block holds.
    """
    if per not in allowed(key.size):
        raise ValueError(f"keys drawn of a block of {key.size} must be one of {allowed(key.size)}, got {per}")
    stretch = key.size / per
    points = torch.rand(key.count * per, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    points = (points + turn * GOLDEN) % 1
    positions = ((torch.arange(key.count * per) + points) * stretch).long()
    positions = positions[positions < key.length]  # those past the end are the last: stretches ascend
    with torch.inference_mode(False):
        return Sample(upload(positions, torch.device(device)), per, stretch)


def allowed(size: int) -> list[int]:
    """How many keys can be drawn of blocks of a size: powers of two."""
    return [1 << i for i in range(MOST_OF_A_BLOCK.bit_length()) if 1 << i <= size]


def check_sample(sample: Sample, mask, lanes: tuple[int, int], device: torch.device) -> None:
    """Raise a one-line ValueError unless a sample fits a mask of even blocks."""
    key = mask.key
    if sample.per not in allowed(key.size):
        raise ValueError(f"sample.per must be one of {allowed(key.size)} for blocks of {key.size}, got {sample.per}")
    shape, dtype = list(sample.positions.shape), sample.positions.dtype
    if dtype != torch.int64 or len(shape) != 1 or shape[0] > key.count * sample.per:
        most = key.count * sample.per
        raise ValueError(f"sample.positions must be int64, at most {most} of them, got {dtype} {shape}")
    if sample.positions.device != device:
        raise ValueError(f"sample.positions are on {sample.positions.device}, but q, k and v on {device}")
    if not 0 < sample.weight < math.inf:
        raise ValueError(f"sample.weight must be a positive number, got {sample.weight}")
    if sample.taken is not None:
        if sample.taken.dtype != torch.int32:
            raise ValueError(f"sample.taken must be torch.int32, got {sample.taken.dtype}")
        check_lanes("sample.taken", sample.taken[..., None], (*lanes, 1), device)


def join_sample(tensors, out, lse, blocks: Blocks, sample: Sample, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge a sample into what was computed without it, in a pass of its own in plain PyTorch.

    Args:
        tensors: q, k and v, and out: ``[B, S, H, D]``. lse: fp32 ``[B, H, S]``, that of ``out``.
        blocks: of the mask and its orders.

    Returns:
        (out, lse), as `block_sparse_attention` gives them with this sample.
    """
    q, k, v = tensors
    means, each = as_means(k, v, blocks, sample)
    bias = means.bias.masked_fill(each.keep, -torch.inf)
    return portable_residual_attention(q, out, lse, each, bias, means, scale)


def as_means(k, v, blocks: Blocks, sample: Sample) -> tuple[Means, Blocks]:
    """A sample as `residual_attention` takes keys that stand for blocks: each key as a block of its own."""
    lanes, count = blocks.sizes[:2], len(sample.positions)
    tokens = sample.positions[None, None]
    if blocks.key_order is not None:
        order = blocks.key_order
        tokens = order.long().gather(-1, tokens.expand(*order.shape[:2], -1))
    bias = torch.full((1, count), sample.bias, device=k.device)
    if sample.taken is not None:
        numbers = torch.arange(count, device=k.device)
        bias = bias.masked_fill(numbers >= sample.taken.expand(lanes).flatten()[:, None], -torch.inf)
    bias = bias.expand(lanes[0] * lanes[1], -1)[:, None]  # [lanes, 1, n]
    kept = blocks.keep.repeat_interleave(sample.per, -1)[..., :count]
    return Means(rows_of(k, tokens), rows_of(v, tokens), bias, None), blocks._replace(keep=kept)
