"""Whether the arguments of a sparse call fit together: what all of its forms ask."""

from __future__ import annotations

import torch


def check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask, cuts: str) -> tuple[int, int, int, int]:
    """Batches, queries, heads and keys of a call. Raises a one-line ValueError unless tensors and mask fit.

    ``cuts``: what the mask does to its sequences, for the message.
    """
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"{name} must be [B, S, H, D], got {list(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}")
    batches, queries, heads, dim = q.shape
    keys = k.shape[1]
    if k.shape != v.shape or k.shape != (batches, keys, heads, dim):
        raise ValueError(f"k {list(k.shape)} and v {list(v.shape)} do not go with q {list(q.shape)}")
    if (mask.query.length, mask.key.length) != (queries, keys):
        raise ValueError(
            f"the mask {cuts} {mask.query.length} queries and {mask.key.length} keys, "
            f"but q has {queries} tokens and k has {keys}"
        )
    return batches, queries, heads, keys


def check_lanes(name: str, x: torch.Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raise a one-line ValueError unless ``x`` has this shape, with one batch or head for all where it has one."""
    found = tuple(x.shape)
    fits = len(found) == len(shape) and found[2:] == shape[2:]
    if not fits or found[0] not in (1, shape[0]) or found[1] not in (1, shape[1]):
        want = ", ".join([f"{shape[0]} or 1", f"{shape[1]} or 1", *map(str, shape[2:])])
        raise ValueError(f"{name} must have shape [{want}], got {list(found)}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, but q is on {device}")
