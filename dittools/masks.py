"""What an attention mask does to the keys of a picture: hides some, favours some, or neither.

Models hand padding over in many forms: bool by key or by pair, numbers to add (-inf, -10000, the 1 and 0 of Chroma,
which hide nothing and only favour), for all rows alike or with other rows for the padding itself. What counts is what
a mask adds to the keys of one row of the picture, less a number that is the same for the whole row, and that all rows
that matter have the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from dittools.kernels.attn_merge import merge
from dittools.kernels.block_sparse.dispatch import block_sparse_attention
from dittools.kernels.masks.block_mask import BlockMask, Partition

# In fp32 a weight this far below the largest is 0; masks written as numbers use -10000 or less.
_HIDDEN = -1000.0
_CHUNK_BYTES = 64 << 20  # of the outputs of some heads in fp32
_SOME_PAIRS = "the call has an attention mask that adds a bias to pairs"
_SOME_ROWS = "the call has an attention mask that is no padding: it hides keys from some rows only"


@dataclass(frozen=True, eq=False)
class Beside:
    """Keys that a sparse call leaves to be added afterwards, with what the mask adds to their logits.

    Args:
        tokens: int64 ``[n]``, in the sequence of keys.
        bias: fp32 ``[n]``, against the keys of the sparse call; None adds nothing, which a kernel computes.
        block_size: of that kernel's blocks.
    """

    tokens: torch.Tensor
    bias: torch.Tensor | None
    block_size: int = 128

    def join(self, out, lse, q, k, v, samples: slice | torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over both: what a sparse call gave, and these keys, by their shares of the softmax. Output and
        log-sum-exp, as they came.

        Args:
            out: ``[b, t, H, D]`` of the sparse call. lse: its log-sum-exp ``[b, H, t]``.
            q: its queries ``[b, t, H, D]``. k, v: of the whole call ``[B, S, H, D]``.
            samples: which of the batch.
        """
        keys, values = (x[samples].index_select(1, self.tokens) for x in (k, v))
        attend = self._by_kernel if self.bias is None else self._by_head
        joined, total = torch.empty_like(out), torch.empty_like(lse)
        for heads, *other in attend(q, keys, values, scale):  # some at a time: sums are fp32
            joined[:, :, heads], total[:, heads] = merge(out[:, :, heads], lse[:, heads], *other)
        return joined, total

    def _by_head(self, q, keys, values, scale: float) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Output ``[b, t, 1, D]`` and log-sum-exp ``[b, 1, t]`` of one head after the other: t x n logits each."""
        for head in range(q.shape[2]):
            # In fp32: rounded to the dtype of q a large logit loses what decides its weight, or overflows.
            logits = (q[:, :, head].float() @ keys[:, :, head].mT.float()) * scale + self.bias  # [b, t, n]
            own = logits.logsumexp(-1, keepdim=True)
            part = (logits - own).exp().to(values.dtype) @ values[:, :, head]
            yield slice(head, head + 1), part[:, :, None], own[..., 0][:, None]

    def _by_kernel(self, q, keys, values, scale: float) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        mask = self._all_pairs(q.shape[1])
        out, lse = block_sparse_attention(q, keys, values, mask, scale=scale, return_lse=True)
        few = max(1, _CHUNK_BYTES // (4 * out[:, :, 0].numel()))
        for first in range(0, q.shape[2], few):
            heads = slice(first, first + few)
            yield heads, out[:, :, heads], lse[:, heads]

    def _all_pairs(self, queries: int) -> BlockMask:
        if self._kept.get(queries) is None:
            sides = Partition(queries, self.block_size), Partition(len(self.tokens), self.block_size)
            self._kept[queries] = BlockMask.full(*sides, self.tokens.device)
        return self._kept[queries]

    @cached_property
    def _kept(self) -> dict[int, BlockMask]:
        return {}


class KeyBias(NamedTuple):
    """What a mask does to the keys of a call, as the rows of the picture have it.

    Args:
        bias: fp32 ``[batch, keys]`` on the CPU, added to each key's logit: 0 where the mask adds nothing, -inf where it
            hides.
        apart: bool ``[batch, keys]`` on the CPU, tokens beside the picture whose own rows see other keys than its rows
            do, such as text that is causal; None: no token's.
    """

    bias: torch.Tensor
    apart: torch.Tensor | None = None


def key_bias(
    mask: torch.Tensor, batch: int, keys: int, picture: slice, queries: torch.Tensor | None = None
) -> KeyBias | str:
    """What a mask adds to each key's logit in the rows of the picture, or why no such numbers say what the mask does.

    Waits for the device. Rows of keys that are not at 0 may hold anything.

    Args:
        mask: what PyTorch's attention takes for ``[B, H, Q, K]`` logits: bool, or numbers to add.
        picture: its keys.
        queries: int64 ``[Q]`` on the CPU, the key of each query's token; None: there are as many as keys.
    """
    mask, at = four(mask), picture.start
    count = keys if queries is None else len(queries)
    if mask.shape[-1] not in (1, keys) or mask.shape[2] not in (1, count):
        tokens = f"{keys} tokens" if count == keys else f"{count} queries and {keys} keys"
        return f"the call has an attention mask of {list(mask.shape)} for {tokens}"
    rows, key = mask.shape[2] > 1, at if mask.shape[-1] > 1 else 0
    row = at if queries is None else int((queries == at).nonzero())
    by_head = mask[:, :, row if rows else 0].expand(-1, -1, keys)  # [B or 1, H or 1, K]
    own = by_head[..., at]
    if not (own if mask.dtype == torch.bool else own > _HIDDEN).all():
        return "the call has an attention mask that hides tokens of the picture"
    if mask.dtype == torch.bool:
        if rows:
            differs = (mask != by_head[:, :1, None]).any(-1)
        bias = torch.zeros(by_head.shape, device=mask.device).masked_fill(~by_head, -torch.inf)
    else:
        bias = less_than_own(by_head, own[..., None])
        if rows:
            differs = (less_than_own(mask, mask[..., key, None]) != bias[:, :1, None]).any(-1)
    if (bias != bias[:, :1]).any():
        return _SOME_ROWS if mask.dtype == torch.bool else "the call has an attention mask that adds a bias by head"
    bias = bias[:, 0]
    bias, apart = bias.expand(batch, -1).cpu(), None
    if rows:
        own = torch.zeros(bias.shape, dtype=torch.bool)  # of each key with a query, whether its row is another
        own[:, slice(None) if queries is None else queries] = differs.any(1).cpu()
        if own[:, picture].any():
            return _SOME_ROWS if mask.dtype == torch.bool else _SOME_PAIRS
        own &= bias == 0
        apart = own if own.any() else None
    return KeyBias(bias, apart)


def less_than_own(numbers: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Numbers of a mask against those at one key, fp32, -inf where that hides."""
    found = numbers.float() - own.float()
    return found.masked_fill(found <= _HIDDEN, -torch.inf)


def four(mask: torch.Tensor) -> torch.Tensor:
    """A mask with all dimensions of ``[B, H, S, S]``."""
    return mask.view((1,) * (4 - mask.ndim) + tuple(mask.shape))
