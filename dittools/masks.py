"""What an attention mask does to the keys of a picture: hides some, favours some, or neither.

Models hand padding over in many forms: bool by key or by pair, numbers to add (-inf, -10000, the 1 and 0 of Chroma,
which hide nothing and only favour), for all rows alike or with other rows for the padding itself. What counts is what
a mask adds to the keys of one row of the picture, less a number that is the same for the whole row, and that all rows
that matter have the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dittools.kernels.attn_merge import merge_rows

# In fp32 a weight this far below the largest is 0; masks written as numbers use -10000 or less.
_HIDDEN = -1000.0
_SOME_ROWS = "the call has an attention mask that is no padding: it hides keys from some rows only"


class Beside(NamedTuple):
    """Keys that a sparse call leaves to be added afterwards, with what the mask adds to their logits.

    Args:
        tokens: int64 ``[n]``, in the sequence.
        bias: fp32 ``[n]``, against the keys of the sparse call.
    """

    tokens: torch.Tensor
    bias: torch.Tensor

    def join(self, out, lse, q, k, v, samples: slice | torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over both: what a sparse call gave, and these keys, by their shares of the softmax. Output and
        log-sum-exp, as they came.

        Args:
            out: ``[b, t, H, D]`` of the sparse call. lse: its log-sum-exp ``[b, H, t]``.
            q: its queries ``[b, t, H, D]``. k, v: of the whole call ``[B, S, H, D]``.
            samples: which of the batch.
        """
        keys, values = (x[samples].index_select(1, self.tokens).movedim(1, 2) for x in (k, v))
        joined, total = torch.empty_like(out), torch.empty_like(lse)
        for head in range(out.shape[2]):  # one at a time: t x n logits each
            # In fp32: rounded to the dtype of q a large logit loses what decides its weight, or overflows.
            logits = (q[:, :, head].float() @ keys[:, head].mT.float()) * scale + self.bias  # [b, t, n]
            own = logits.logsumexp(-1, keepdim=True)
            beside = (logits - own).exp().to(values.dtype) @ values[:, head]
            joined[:, :, head], total[:, head] = merge_rows(out[:, :, head], lse[:, head], beside, own[..., 0])
        return joined, total


def key_bias(mask: torch.Tensor, batch: int, tokens: int, at: int) -> torch.Tensor | str:
    """What a mask adds to each key's logit in the rows of the picture: fp32 ``[batch, tokens]`` on the CPU.

    0 where it adds nothing, -inf where it hides; or why no such numbers say what the mask does. Waits for the device.
    Rows of keys that are not at 0 may hold anything.

    Args:
        mask: what PyTorch's attention takes for ``[B, H, S, S]`` logits: bool, or numbers to add.
        at: a token of the picture.
    """
    mask = four(mask)
    if mask.shape[-1] not in (1, tokens) or mask.shape[2] not in (1, tokens):
        return f"the call has an attention mask of {list(mask.shape)} for {tokens} tokens"
    rows, key = mask.shape[2] > 1, at if mask.shape[-1] > 1 else 0
    by_head = mask[:, :, at if rows else 0].expand(-1, -1, tokens)  # [B or 1, H or 1, S]
    own = by_head[..., at]
    if not (own if mask.dtype == torch.bool else own > _HIDDEN).all():
        return "the call has an attention mask that hides tokens of the picture"
    if mask.dtype == torch.bool:
        if rows:
            differs = (mask != by_head[:, :1, None]).any(-1)
        bias = torch.zeros(by_head.shape, device=mask.device).masked_fill(~by_head, -torch.inf)
    else:
        bias = _less(by_head, own[..., None])
        if rows:
            differs = (_less(mask, mask[..., key, None]) != bias[:, :1, None]).any(-1)
    if (bias != bias[:, :1]).any():
        return _SOME_ROWS if mask.dtype == torch.bool else "the call has an attention mask that adds a bias by head"
    bias = bias[:, 0]
    if rows and (differs & (bias == 0)[:, None]).any():
        return _SOME_ROWS if mask.dtype == torch.bool else "the call has an attention mask that adds a bias to pairs"
    return bias.expand(batch, -1).cpu()


def _less(numbers: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Numbers against those at one key, -inf where that hides."""
    found = numbers.float() - own.float()
    return found.masked_fill(found <= _HIDDEN, -torch.inf)


def four(mask: torch.Tensor) -> torch.Tensor:
    """A mask with all dimensions of ``[B, H, S, S]``."""
    return mask.view((1,) * (4 - mask.ndim) + tuple(mask.shape))
