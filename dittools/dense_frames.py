"""Dense attention of a picture of whose keys some are seen by some frames alone."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F

from dittools.tokens import Layout, placed


def attend_frames(layout: Layout, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of all queries to what they see, ``[B, Q, H, D]``: a call for each run of frames that see alike.

    Queries of parts that are seen by some frames alone give zeros, as rows of which a mask shows nothing do.

    Args:
        layout: of keys ``k``, ``v`` ``[B, K, H, D]``, and of queries ``[B, Q, H, D]`` among them.
        scale: factor on the logits.
    """
    all_keys, some = [], []
    for part, at in placed(layout.parts_of(k.shape[1])):
        if part.seen_by is None:
            all_keys.append(at)
        elif part.seen_by[0] < part.seen_by[1]:
            some.append((part.seen_by, at))
    picture = layout.picture_start(k.shape[1])
    frame = layout.height * layout.width
    cuts = sorted({0, layout.frames, *(end for ends, _ in some for end in ends)})
    places = layout.queries_at(k.shape[1])
    out = q.new_zeros(*q.shape[:3], v.shape[-1])
    for first, last in pairwise(cuts):
        seen = [*all_keys, *(at for ends, at in some if ends[0] <= first < ends[1])]
        keys, values = (torch.cat([x[:, at] for at in seen], 1).transpose(1, 2) for x in (k, v))
        begin = int((places == picture + first * frame).nonzero())
        rows = slice(begin, begin + (last - first) * frame)
        queries = q[:, rows].transpose(1, 2)
        out[:, rows] = F.scaled_dot_product_attention(queries, keys, values, scale=scale).transpose(1, 2)
    return out


def shown_pairs(layout: Layout, keys: int, tokens: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Which keys at these places, int64 ``[n]``, queries at these, ``[m]``, see: bool ``[m, n]`` on the CPU."""
    first, frame = layout.picture_start(keys), layout.height * layout.width
    low, high = torch.zeros(keys, dtype=torch.int64), torch.full((keys,), layout.frames)
    alone = torch.zeros(keys, dtype=torch.bool)
    for part, at in placed(layout.parts_of(keys)):
        if part.seen_by is not None:
            low[at], high[at], alone[at] = *part.seen_by, True
    place = layout.queries_at(keys)[tokens]
    frames = (place - first) // frame
    return (frames[:, None] >= low[others]) & (frames[:, None] < high[others]) & ~alone[place][:, None]
