"""Kept blocks as index lists, the form in which kernels walk them: from masks, from scores, and back.

Everything here runs on the device of its input, without a host sync, and gives the same answer every time.
"""

from __future__ import annotations

import torch

from dittools.kernels.capability import why_not_triton_lists
from dittools.kernels.choice import picks_triton


def from_keep(keep: torch.Tensor, *, implementation: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a boolean block mask into lists of kept key blocks.

    Args:
        keep: bool ``[..., Mq, Nk]``.
        implementation: "portable" or "triton"; chosen when None.

    Returns:
        counts int32 ``[..., Mq]``, and indices int32 ``[..., Mq, Nk]``, ascending up to the count, 0 after.
        Both are made on the mask's device without a host sync.
    """
    if picks_triton(implementation, keep, reason=why_not_triton_lists(keep.shape[-1])):
        from dittools.kernels.block_sparse.lists_triton import triton_lists

        return triton_lists("keep", keep)
    running = keep.cumsum(-1, dtype=torch.int32)  # [..., Mq, Nk]
    counts = running[..., -1].contiguous()
    columns = torch.arange(keep.shape[-1], dtype=torch.int32, device=keep.device)
    # Skipped blocks all land in one spare slot: a scatter costs one pass where a sort costs many.
    slots = torch.where(keep, running - 1, keep.shape[-1]).long()
    indices = torch.zeros(*keep.shape[:-1], keep.shape[-1] + 1, dtype=torch.int32, device=keep.device)
    indices.scatter_(-1, slots, columns.expand(keep.shape))
    return counts, indices[..., :-1].contiguous()


block_lists = from_keep


def to_keep(counts: torch.Tensor, indices: torch.Tensor, key_blocks: int) -> torch.Tensor:
    """The boolean block mask that lists stand for.

    Args:
        counts: int ``[..., Mq]``.
        indices: int ``[..., Mq, L]``; entries past the count are not read.
        key_blocks: Nk, more than every index up to the count.

    Returns:
        bool ``[..., Mq, Nk]``.
    """
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts[..., None]
    slots = torch.where(listed, indices.long(), key_blocks)
    keep = torch.zeros(*indices.shape[:-1], key_blocks + 1, dtype=torch.bool, device=indices.device)
    return keep.scatter_(-1, slots, True)[..., :-1].contiguous()


def to_bits(counts: torch.Tensor, indices: torch.Tensor, *, implementation: str | None = None) -> torch.Tensor:
    """The kept blocks of lists as bits.

    Args:
        counts: int32 ``[..., Mq]``.
        indices: int32 ``[..., Mq, Nk]``; entries past the count are not read.
        implementation: "portable" or "triton"; chosen when None.

    Returns:
        int32 ``[..., Mq, ceil(Nk / 32)]``: block n is bit ``n % 32`` of word ``n // 32``.
    """
    if picks_triton(implementation, indices, reason=why_not_triton_lists(indices.shape[-1])):
        from dittools.kernels.block_sparse.lists_triton import triton_bits

        return triton_bits(counts, indices)
    keep = to_keep(counts, indices, indices.shape[-1])
    keep = torch.nn.functional.pad(keep, (0, -keep.shape[-1] % 32)).unflatten(-1, (-1, 32))
    values = torch.where(keep, 1 << torch.arange(32, device=keep.device), 0).sum(-1)  # int64, up to 2^32 - 1
    return torch.where(values >= 1 << 31, values - (1 << 32), values).int()


def keep_top_k(scores: torch.Tensor, k: int | torch.Tensor, force: torch.Tensor | None = None) -> torch.Tensor:
    """The mask that keeps the k best key blocks of each query block.

    Args:
        scores: ``[..., Mq, Nk]``, no NaN; more is better. Of equal scores the lower index wins.
        k: key blocks to keep: one number, or an int tensor broadcastable to ``[..., Mq]``. More than Nk
            keeps all.
        force: bool, broadcastable to ``[..., Mq, Nk]``: blocks that are kept whatever they score. They come
            first and count towards k, so that a row keeps more than k only where more than k are forced.

    Returns:
        bool ``[..., Mq, Nk]``.

    Raises:
        ValueError: when k is a negative number.
    """
    _check_top_k(k)
    _, best_first = _best_first(scores, force)
    rank = torch.arange(scores.shape[-1], device=scores.device)
    if isinstance(k, torch.Tensor):
        k = k[..., None]
    return _scatter_back((rank < k).expand(scores.shape), best_first, force)


def keep_mass(
    scores: torch.Tensor,
    p: float | torch.Tensor,
    *,
    min_share: float = 0.0,
    min_count: int = 1,
    force: torch.Tensor | None = None,
) -> torch.Tensor:
    """The mask that keeps, in each row, the fewest key blocks that hold the share p of the row's mass.

    Best first, up to and with the block that reaches p (top-p, nucleus selection).

    Args:
        scores: ``[..., Mq, Nk]``, at least 0, no NaN: probabilities, or masses that need not sum to 1. Of
            equal scores the lower index wins.
        p: share of the row's total to reach, one number or a tensor broadcastable to ``[..., Mq]``. From 1
            on every block is kept.
        min_share: least share of the Nk key blocks to keep, rounded down to whole blocks.
        min_count: least number of key blocks to keep.
        force: bool, broadcastable to ``[..., Mq, Nk]``: blocks that are kept whatever they hold. They come
            first, and what they hold counts towards p.

    Returns:
        bool ``[..., Mq, Nk]``. Sums are fp32 over the sorted row.

    Raises:
        ValueError: when p or min_share is a number outside [0, 1], or min_count is below 0.
    """
    least = _check_mass(scores, p, min_share, min_count)
    if not isinstance(p, torch.Tensor) and p == 1:
        return torch.ones_like(scores, dtype=torch.bool)
    scores = scores.float()
    held, best_first = _best_first(scores, force)
    if force is not None:
        held = scores.gather(-1, best_first)
    reached = held.cumsum(-1)  # [..., Mq, Nk]
    before = torch.nn.functional.pad(reached[..., :-1], (1, 0))
    total = reached[..., -1:]
    rank = torch.arange(scores.shape[-1], device=scores.device)
    if isinstance(p, torch.Tensor):
        p = p[..., None].float()
        chosen = (before < p * total) | (p >= 1)
    else:
        chosen = before < p * total
    return _scatter_back(chosen | (rank < least), best_first, force)


def from_top_k(
    scores: torch.Tensor, k: int | torch.Tensor, force: torch.Tensor | None = None, *, implementation: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of the k best key blocks of each query block: `keep_top_k`, then `from_keep`, one pass in Triton.

    ``implementation``: "triton" or "portable"; chosen when None.
    """
    if picks_triton(implementation, scores, reason=why_not_triton_lists(scores.shape[-1])):
        from dittools.kernels.block_sparse.lists_triton import triton_lists

        _check_top_k(k)
        k = k.clamp_max(scores.shape[-1]) if isinstance(k, torch.Tensor) else min(k, scores.shape[-1])
        return triton_lists("top-k", scores, k, force)
    return from_keep(keep_top_k(scores, k, force))


def from_mass(
    scores: torch.Tensor, p: float | torch.Tensor, *, force=None, implementation: str | None = None, **least
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lists of the fewest key blocks that hold the share p of each row: `keep_mass`, then `from_keep`.

    ``force``, and in ``least`` min_share and min_count: as `keep_mass`. ``implementation``: "triton" (one pass) or
    "portable"; chosen when None. Their sums run in different orders: where a sum meets p to the last digit, they may
    differ by the one block that crosses it.
    """
    if picks_triton(implementation, scores, reason=why_not_triton_lists(scores.shape[-1])):
        from dittools.kernels.block_sparse.lists_triton import triton_lists

        return triton_lists("mass", scores, p, force, _check_mass(scores, p, **least))
    return from_keep(keep_mass(scores, p, force=force, **least))


def schedule(counts: torch.Tensor) -> torch.Tensor:
    """The order in which to start the query blocks of each head: longest list first.

    Long rows that start last leave a card idle at the end. Heads stay together, because programs in flight
    share one head's keys and values in the L2 cache.

    Args:
        counts: int ``[..., Mq]``.

    Returns:
        int32 ``[..., Mq]``, a permutation of the query blocks of each head; of equal counts the lower first.
    """
    return counts.sort(dim=-1, descending=True, stable=True).indices.int()


def _best_first(scores: torch.Tensor, force: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row sorted, forced blocks in front: (values, indices), both ``[..., Nk]``. A stable sort keeps ties."""
    if force is not None:
        scores = scores.masked_fill(force, torch.inf)
    return scores.sort(dim=-1, descending=True, stable=True)


def _scatter_back(chosen: torch.Tensor, best_first: torch.Tensor, force: torch.Tensor | None) -> torch.Tensor:
    """Choices by rank to choices by block."""
    keep = torch.zeros_like(best_first, dtype=torch.bool).scatter_(-1, best_first, chosen)
    return keep if force is None else keep | force


def _check_top_k(k: int | torch.Tensor) -> None:
    if not isinstance(k, torch.Tensor) and k < 0:
        raise ValueError(f"k must be at least 0, got {k}")


def _check_mass(scores: torch.Tensor, p: float | torch.Tensor, min_share: float = 0.0, min_count: int = 1) -> int:
    """The least number of blocks to keep, once the numbers are found to be in range."""
    for name, value in (("p", p), ("min_share", min_share)):
        if not isinstance(value, torch.Tensor) and not 0 <= value <= 1:
            raise ValueError(f"{name} must be between 0 and 1, got {value}")
    if min_count < 0:
        raise ValueError(f"min_count must be at least 0, got {min_count}")
    return max(min_count, int(min_share * scores.shape[-1]))
