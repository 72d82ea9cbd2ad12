"""What a call of sparse attention may say beside its tensors and its mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from dittools.kernels.block_sparse.sample import Sample


@dataclass(frozen=True)
class Call:
    """The keywords of `dittools.kernels.block_sparse_attention`, and of its custom operator.

    Args:
        order: int32 (or int64) ``[B or 1, H or 1, Sq]``, a permutation: query position -> token. With even blocks it
            orders keys as well, and needs Sq == Sk. q, k, v and the results stay in token order; None when positions
            are tokens.
        key_order: with clusters, the same for keys, ``[B or 1, H or 1, Sk]``, where it is another than ``order``.
        scale: factor on the logits, ``1 / sqrt(D)`` by default.
        key_bias: fp32 ``[B or 1, H or 1, Nk]``, added to the scaled logits of every key in a key block; even blocks
            only.
        sample: keys that stand for the blocks which each row skips, as more keys of the call; even blocks without a
            ``key_bias`` only.
        return_lse: also return the log-sum-exp of each row's logits.
        implementation: "hopper", "triton", "portable" or "naive"; chosen by `dittools.kernels.choose` when None.
    """

    order: torch.Tensor | None = None
    key_order: torch.Tensor | None = None
    scale: float | None = None
    key_bias: torch.Tensor | None = None
    sample: Sample | None = None
    return_lse: bool = False
    implementation: str | None = None

    def scale_of(self, q: torch.Tensor) -> float:
        """The factor on the logits of q ``[B, S, H, D]``. Raises a one-line ValueError unless it is positive."""
        if self.scale is None:
            return q.shape[-1] ** -0.5
        if not 0 < self.scale < float("inf"):
            raise ValueError(f"scale must be a positive number, got {self.scale}")
        return float(self.scale)
