"""The Triton kernel on a real card, against the oracle on sampled rows."""

import pytest
import torch
from cases import check, inputs, plain_attention, random_mask, random_order, rms_error, token_mask

from dittools.kernels import block_sparse_attention, dense_attention, dense_kernel_name
from dittools.kernels.masks.block_mask import BlockMask, Partition

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("tokens", [4111, 32760])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("block", [64, 128])
@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "ordered"])
def test_triton_matches_the_oracle_on_sampled_rows(tokens, dim, block, ordered):
    heads = 3
    q, k, v = inputs(1, tokens, heads, dim, torch.bfloat16, device="cuda")
    mask = random_mask(tokens, block, block, heads=heads, density=0.2, device="cuda")
    mask.keep[..., 3] = True  # no empty row
    order = random_order(1, heads, tokens, device="cuda") if ordered else None
    out, lse = block_sparse_attention(q, k, v, mask, order=order, return_lse=True, implementation="triton")
    assert out.isfinite().all() and lse.isfinite().all()

    positions = torch.cat([torch.randint(tokens, (60,)), torch.tensor([0, tokens - 1])]).cuda()
    for head in range(heads):
        place = torch.arange(tokens, device="cuda") if order is None else order[0, head].long()
        rows, kept = place[positions], mask.to_tokens(0, head, positions)  # [n], [n, S]
        one_q = q[:, rows, head : head + 1]
        one_k, one_v = (x[:, place, head : head + 1] for x in (k, v))
        exact = plain_attention(one_q.float(), one_k.float(), one_v.float(), kept)
        plain = plain_attention(one_q, one_k, one_v, kept)
        assert rms_error(out[:, rows, head : head + 1], exact) <= 2 * rms_error(plain, exact) + 1e-5
        logits = (one_q[0, :, 0].float() @ one_k[0, :, 0].float().T * dim**-0.5).masked_fill(~kept, -torch.inf)
        torch.testing.assert_close(lse[0, head, rows], logits.logsumexp(-1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dim", [64, 96, 128])
@pytest.mark.parametrize(("query_block", "key_block"), [(64, 64), (128, 64), (64, 128), (128, 128)])
@pytest.mark.parametrize("implementation", ["triton", "portable"])
def test_small_shapes_match_the_oracle(implementation, dtype, dim, query_block, key_block):
    q, k, v = inputs(2, 500, 2, dim, dtype, device="cuda")
    mask = random_mask(500, query_block, key_block, 1, 2, device="cuda")
    mask.keep[0, 0, 0], mask.keep[0, 1, -1] = False, True
    bias = torch.randn(2, 1, mask.key.count, device="cuda")
    order = random_order(1, 2, 500, device="cuda")
    check(implementation, q, k, v, mask)
    check(implementation, q, k, v, mask, order=order, key_bias=bias)


@pytest.mark.parametrize("dim", [64, 128])
def test_dense_attention_is_named_and_right(dim):
    q, k, v = inputs(1, 4111, 2, dim, torch.bfloat16, device="cuda")
    out = dense_attention(q, k, v)
    full = BlockMask.full(Partition(4111, 128), Partition(4111, 128), device="cuda")
    torch.testing.assert_close(out, block_sparse_attention(q, k, v, full), atol=1e-2, rtol=2e-2)
    assert dense_kernel_name("cuda", torch.bfloat16, dim).startswith("sdpa-")


def test_lists_are_made_without_a_host_sync():
    mask = random_mask(4111, 64, 64, heads=2, device="cuda")
    q, k, v = inputs(1, 4111, 2, 64, torch.bfloat16, device="cuda")
    block_sparse_attention(q, k, v, mask)
    fresh = BlockMask(mask.keep, mask.query, mask.key)
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        fresh.density()
        block_sparse_attention(q, k, v, fresh)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_oracle_and_the_token_mask_agree_on_the_gpu():
    q, k, v = inputs(1, 300, 2, 64, device="cuda")
    mask = random_mask(300, 64, 64, heads=2, device="cuda")
    order = random_order(1, 2, 300, device="cuda")
    out = block_sparse_attention(q, k, v, mask, order=order, implementation="naive")
    want = plain_attention(q, k, v, token_mask(mask, order, 1, 2))
    torch.testing.assert_close(out, want, atol=5e-3, rtol=5e-3)
