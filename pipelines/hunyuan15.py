"""HunyuanVideo 1.5's attention with its padding as one row of keys.

diffusers' processor spells the padding out for every pair of tokens, twice a layer: 12 GB each time at 720p. A
row of keys says the same for all that is ever looked at. Only the rows of padded tokens themselves come out
differently, and no other token attends to those.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb


def key_padded(
    processor: Any,
    attn: torch.nn.Module,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    image_rotary_emb: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The call of a ``HunyuanVideo15AttnProcessor2_0``: attention over ``[video, text]``.

    ``attention_mask [B, text]`` is true for text that is there.
    """
    video = hidden_states.shape[1]

    def heads(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (attn.heads, -1))

    q, k, v = (heads(project(hidden_states)) for project in (attn.to_q, attn.to_k, attn.to_v))
    q, k = attn.norm_q(q), attn.norm_k(k)
    if image_rotary_emb is not None:
        q, k = (apply_rotary_emb(x, image_rotary_emb, sequence_dim=1) for x in (q, k))
    if encoder_hidden_states is not None:
        projections = attn.add_q_proj, attn.add_k_proj, attn.add_v_proj
        text_q, text_k, text_v = (heads(project(encoder_hidden_states)) for project in projections)
        if attn.norm_added_q is not None:
            text_q = attn.norm_added_q(text_q)
        if attn.norm_added_k is not None:
            text_k = attn.norm_added_k(text_k)
        q, k, v = (torch.cat(pair, dim=1) for pair in ((q, text_q), (k, text_k), (v, text_v)))
    mask = None
    if attention_mask is not None:
        mask = F.pad(attention_mask.bool(), (q.shape[1] - attention_mask.shape[1], 0), value=True)[:, None, None]
    out = dispatch_attention_fn(
        q, k, v, attn_mask=mask, backend=processor._attention_backend, parallel_config=processor._parallel_config
    )
    out = out.flatten(2, 3).to(q.dtype)
    if encoder_hidden_states is None:
        return out, None
    out, text = out[:, :video], out[:, video:]
    if getattr(attn, "to_out", None) is not None:
        for layer in attn.to_out:
            out = layer(out)
    if getattr(attn, "to_add_out", None) is not None:
        text = attn.to_add_out(text)
    return out, text
