"""Two attention outputs merged by their log-sum-exp, against one softmax over the keys of both."""

import pytest
import torch

from dittools.kernels import merge


def attention(q, k, v):
    """Output ``[B, S, H, D]`` and log-sum-exp ``[B, H, S]`` in fp64; no keys give zeros and -inf."""
    logits = torch.einsum("bshd,bthd->bhst", q.double(), k.double())
    out = (
        torch.einsum("bhst,bthd->bshd", logits.softmax(-1), v.double()) if k.shape[1] else torch.zeros_like(q.double())
    )
    return out, logits.logsumexp(-1)


@pytest.mark.parametrize("dtype, near", [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("first", [0, 1, 5, 12])
def test_merged_halves_are_the_softmax_over_the_union(dtype, near, first):
    torch.manual_seed(first)
    q, k, v = torch.randn(3, 2, 12, 3, 8).unbind() if first else torch.randn(3, 2, 12, 3, 8).mul(9).unbind()
    (a, lse_a), (b, lse_b) = (attention(q, k[:, part], v[:, part]) for part in (slice(first), slice(first, None)))
    out, lse = merge(a.to(dtype), lse_a.float(), b.to(dtype), lse_b.float())
    whole, whole_lse = attention(q, k, v)
    assert out.dtype == dtype and lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), whole, atol=near, rtol=near)
    torch.testing.assert_close(lse.double(), whole_lse, atol=1e-5, rtol=1e-6)


def test_a_row_without_keys_in_either_call_stays_as_it_is():
    out, other = torch.zeros(1, 2, 1, 4), torch.ones(1, 2, 1, 4)
    none = torch.tensor([[[-torch.inf, 0.0]]])
    merged, lse = merge(out, none, other, none)
    assert torch.equal(merged[0, :, 0, 0], torch.tensor([0.0, 0.5])) and lse[0, 0, 0].isneginf()
