"""The oracle itself, against masked dense attention over tokens."""

import pytest
import torch
from cases import inputs, plain_attention, random_mask, random_order, token_mask

from dittools.kernels import block_sparse_attention


@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "ordered"])
def test_the_oracle_is_masked_softmax_attention(ordered):
    q, k, v = inputs(2, 150, 2, 32)
    mask = random_mask(150, 64, 32, 2, 2)
    order = random_order(1, 2, 150) if ordered else None
    kept = token_mask(mask, order, 2, 2)
    out, lse = block_sparse_attention(q, k, v, mask, order=order, return_lse=True, implementation="naive")
    torch.testing.assert_close(out, plain_attention(q, k, v, kept), atol=1e-5, rtol=1e-5)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * 32**-0.5
    torch.testing.assert_close(lse, logits.masked_fill(~kept, -torch.inf).logsumexp(-1), atol=1e-5, rtol=1e-5)


def test_the_bias_of_a_key_block_shifts_the_logits_of_its_keys():
    q, k, v = inputs(1, 100, 1, 32)
    mask = random_mask(100, 64, 32, density=1.0)
    bias = torch.randn(1, 1, mask.key.count)
    out = block_sparse_attention(q, k, v, mask, key_bias=bias, implementation="naive")
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * 32**-0.5
    logits += bias.repeat_interleave(32, -1)[..., None, :100]
    torch.testing.assert_close(out, torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v), atol=1e-5, rtol=1e-5)
