"""One call of ComfyUI's attention, in the shapes of `dittools.runtime.Runtime.attend` and back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

NAMES = ("q", "k", "v", "heads", "mask", "attn_precision", "skip_reshape", "skip_output_reshape")
# Which kernel ComfyUI would choose, or who called: nothing that changes what attention is.
HINTS = ("transformer_options", "_inside_attn_wrapper", "low_precision_attention")
KNOWN = (*NAMES, *HINTS, "scale", "enable_gqa")


class Call(NamedTuple):
    """One call.

    Args:
        q, k, v: ``[B, S, H, D]``; keys and values of grouped heads are repeated.
        mask: with all dimensions of ``[B, H, S, S]``, or None.
        scale: factor on the logits; None for ``1 / sqrt(D)``.
        heads_apart: whether ComfyUI wants ``[B, H, S, D]`` back, in place of ``[B, S, H * D]``.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    mask: torch.Tensor | None
    scale: float | None
    heads_apart: bool

    def taken(self, out: torch.Tensor) -> torch.Tensor:
        """What ComfyUI's attention gives, as ``[B, S, H, D]``."""
        return out.transpose(1, 2) if self.heads_apart else out.unflatten(-1, (self.q.shape[2], -1))

    def given(self, out: torch.Tensor) -> torch.Tensor:
        """``[B, S, H, D]`` as ComfyUI wants it."""
        return out.transpose(1, 2) if self.heads_apart else out.flatten(2)


def read_call(args: tuple, kwargs: dict[str, Any]) -> Call | str:
    """A call with these arguments of ComfyUI's attention, or why only ComfyUI can run it."""
    given = {**dict(zip(NAMES, args, strict=False)), **kwargs}
    strange = [name for name, value in given.items() if name not in KNOWN and value not in (None, False)]
    if strange:
        return f"ComfyUI's attention was called with {', '.join(strange)}, of which sparse calls know nothing"
    heads, mask = given["heads"], given.get("mask")
    if mask is not None and not isinstance(mask, torch.Tensor):
        return f"the call has a mask that is a {type(mask).__name__}"
    tensors = [given[name] for name in "qkv"]
    if given.get("skip_reshape"):
        q, k, v = (x.transpose(1, 2) for x in tensors)
    else:
        width = tensors[0].shape[-1] // heads
        keys = tensors[1].shape[-1] // width
        q = tensors[0].unflatten(-1, (heads, width))
        k, v = (x.unflatten(-1, (keys, -1)) for x in tensors[1:])
    if k.shape[2] != q.shape[2] and q.shape[2] % k.shape[2] == 0:
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], dim=2) for x in (k, v))
    if mask is not None and mask.ndim in (2, 3):  # [S, S], or [B, S, S]
        mask = mask[None, None] if mask.ndim == 2 else mask[:, None]
    return Call(q, k, v, mask, given.get("scale"), bool(given.get("skip_output_reshape")))
