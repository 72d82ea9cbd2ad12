"""Whether the arguments of a call fit together: what several operations, or all forms of a sparse call, ask."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dittools.kernels.capability import MAX_TENSORS


def check_alike(**tensors: torch.Tensor) -> None:
    """Raise a one-line ValueError unless all are ``[B, S, H, D]``, in the dtype and on the device of ``q``."""
    q = tensors["q"]
    for name, x in tensors.items():
        if x.ndim != 4:
            raise ValueError(f"{name} must be [B, S, H, D], got {list(x.shape)}")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, but q is {q.dtype} on {q.device}")


def check_pass(tensors: Sequence[torch.Tensor], order: torch.Tensor | None) -> None:
    """Raise a one-line ValueError unless one pass can take these tensors, and their tokens in this order."""
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise ValueError(f"one pass takes 1 to {MAX_TENSORS} tensors, got {len(tensors)}")
    first = tensors[0]
    for x in tensors:
        if x.ndim != 4 or x.shape != first.shape or x.device != first.device:
            raise ValueError(
                f"tensors must be [B, S, H, D], all of one shape and device, got {list(first.shape)} on "
                f"{first.device} and {list(x.shape)} on {x.device}"
            )
    if order is None:
        return
    if order.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"order must be int32, got {order.dtype}")
    if order.ndim != 3 or order.shape[2] != first.shape[1]:
        want = f"[{first.shape[0]} or 1, {first.shape[2]} or 1, {first.shape[1]}]"
        raise ValueError(f"order must be {want}, got {list(order.shape)}")
    check_lane_count("order", order, first)


def check_lane_count(name: str, x: torch.Tensor, tensor: torch.Tensor) -> None:
    """Raise a one-line ValueError unless ``x`` is for the lanes of a tensor ``[B, S, H, D]``, and on its device."""
    batches, heads = tensor.shape[0], tensor.shape[2]
    if x.shape[0] not in (1, batches) or x.shape[1] not in (1, heads):
        raise ValueError(f"{name} must be [{batches} or 1, {heads} or 1, {x.shape[2]}], got {list(x.shape)}")
    if x.device != tensor.device:
        raise ValueError(f"{name} is on {x.device}, but the tensors are on {tensor.device}")


def check_tensors(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask, cuts: str) -> tuple[int, int, int, int]:
    """Batches, queries, heads and keys of a call. Raises a one-line ValueError unless tensors and mask fit.

    ``cuts``: what the mask does to its sequences, for the message.
    """
    check_alike(q=q, k=k, v=v)
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
