"""Whether a block mask of flex attention says what the layout of a forward does: then our kernels can read it so."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from dittools.dense_frames import shown_pairs
from dittools.tokens import Layout


def shows_as_laid_out(mask: Any, layout: Layout, keys: int) -> bool:
    """Whether a block mask of flex attention shows those pairs that a layout does. Waits for the device."""
    if layout.queries_of(keys) != mask.shape[-2] or keys != mask.shape[-1]:
        return False
    frame, ends = layout.height * layout.width, {0, keys - 1}
    starts = [layout.picture_start(keys) + frame * n for n in range(layout.frames + 1)]
    starts += itertools.accumulate(part.tokens for part in layout.parts_of(keys))
    ends |= {at for start in starts for at in (start - 1, start) if 0 <= at < keys}
    others = torch.tensor(sorted(ends))
    place = layout.queries_at(keys)
    tokens = torch.isin(place, others).nonzero().flatten()
    device = mask.kv_num_blocks.device
    zero = torch.zeros((), dtype=torch.int64, device=device)
    found = mask.mask_mod(zero, zero, tokens.to(device)[:, None], others.to(device))
    return torch.equal(found.cpu(), shown_pairs(layout, keys, tokens, others))
