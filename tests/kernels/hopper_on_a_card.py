"""The Hopper kernel on a card of compute capability 9.x, against the oracle.

`test_hopper_gpu.py` runs each of these in a process of its own: a kernel that hangs cannot be interrupted.
"""

import pytest
import torch
from cases import inputs, plain_attention, random_mask, random_order, rms_error, token_mask

from dittools.kernels.block_sparse import hopper
from dittools.kernels.block_sparse.hopper import hopper_block_sparse_attention
from dittools.kernels.block_sparse.naive import naive_block_sparse_attention
from dittools.kernels.capability import why_not_hopper
from dittools.kernels.masks.block_mask import BlockMask, Partition

WHY_NOT = why_not_hopper(torch.device("cuda"), torch.bfloat16, 128)
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

QUERY_BLOCKS = (128, 64)


def attend(q, k, v, mask, **call):
    """One call at the usual scale: (out, lse). The fixture in conftest fills fresh memory with NaN before."""
    call.setdefault("order", None)
    call.setdefault("beside", call.pop("key_bias", None))
    return hopper_block_sparse_attention(q, k, v, mask, scale=q.shape[-1] ** -0.5, **call)


def check(q, k, v, mask, *, order=None, key_bias=None, **call):
    """Against the oracle over every row; the error may be twice that of plain attention in the same dtype."""
    scale = q.shape[-1] ** -0.5
    out, lse = attend(q, k, v, mask, order=order, key_bias=key_bias, **call)
    same = {"order": order, "scale": scale}
    exact, exact_lse = naive_block_sparse_attention(q.float(), k.float(), v.float(), mask, key_bias=key_bias, **same)
    unbiased, _ = naive_block_sparse_attention(q.float(), k.float(), v.float(), mask, **same)
    plain = plain_attention(q, k, v, token_mask(mask, order, q.shape[0], q.shape[2]))
    error, allowed = rms_error(out, exact), 2 * rms_error(plain, unbiased) + 1e-5
    assert error <= allowed, f"RMS error {error:.2e}, allowed {allowed:.2e}"
    empty = exact_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    torch.testing.assert_close(lse[~empty], exact_lse[~empty], atol=2e-3, rtol=1e-4)
    return out, lse


@pytest.mark.parametrize("query_block", QUERY_BLOCKS, ids="rows{}".format)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("key_block", [64, 128])
@pytest.mark.parametrize("tokens", [1, 500, 1100])
def test_it_matches_the_oracle(query_block, dtype, dim, key_block, tokens):
    q, k, v = inputs(2, tokens, 3, dim, dtype, device="cuda")
    mask = random_mask(tokens, query_block, key_block, 2, 3, device="cuda")
    mask.keep[0, 0, 0], mask.keep[0, 1, -1], mask.keep[1, 0] = False, True, True
    check(q, k, v, mask)
    if tokens == 500:
        check(q, k, v, mask, order=random_order(2, 3, tokens, device="cuda"))


@pytest.mark.parametrize("query_block", QUERY_BLOCKS)
@pytest.mark.parametrize("tokens", [4111, 32760])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("key_block", [64, 128])
def test_long_ragged_sequences_match_on_sampled_rows(query_block, tokens, dim, key_block):
    heads = 3
    q, k, v = inputs(1, tokens, heads, dim, torch.bfloat16, device="cuda")
    mask = random_mask(tokens, query_block, key_block, heads=heads, density=0.2, device="cuda")
    mask.keep[..., 3] = True  # no empty row
    out, lse = attend(q, k, v, mask)
    assert out.isfinite().all() and lse.isfinite().all()
    rows = torch.cat([torch.randint(tokens, (60,)), torch.tensor([0, tokens - 1])]).cuda()
    for head in range(heads):
        one = slice(head, head + 1)
        kept = mask.to_tokens(0, head, rows)
        exact = plain_attention(q[:, rows, one].float(), k[:, :, one].float(), v[:, :, one].float(), kept)
        plain = plain_attention(q[:, rows, one], k[:, :, one], v[:, :, one], kept)
        assert rms_error(out[:, rows, one], exact) <= 2 * rms_error(plain, exact) + 1e-5
        logits = (q[0, rows, head].double() @ k[0, :, head].double().T * dim**-0.5).masked_fill(~kept, -torch.inf)
        torch.testing.assert_close(lse[0, head, rows], logits.logsumexp(-1).float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("mask_batches", [1, 2])
@pytest.mark.parametrize("mask_heads", [1, 3])
def test_masks_and_biases_are_shared_or_belong_to_a_batch_and_a_head(mask_batches, mask_heads):
    q, k, v = inputs(2, 700, 3, 64, torch.bfloat16, device="cuda")
    order = random_order(1, 3, 700, device="cuda")
    for query_block in QUERY_BLOCKS:
        mask = random_mask(700, query_block, 64, mask_batches, mask_heads, device="cuda")
        bias = torch.randn(mask_batches, mask_heads, mask.key.count, device="cuda")
        bias[..., 0] = -torch.inf
        check(q, k, v, mask)
        check(q, k, v, mask, key_bias=bias)
        check(q, k, v, mask, key_bias=bias, order=order)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("query_block", [64, 128])
def test_empty_and_full_masks(density, query_block):
    q, k, v = inputs(1, 1000, 2, 128, torch.bfloat16, device="cuda")
    for key_block in (64, 128):
        check(q, k, v, random_mask(1000, query_block, key_block, density=density, device="cuda"))


@pytest.mark.parametrize("layout", ["packed", "heads first", "odd offset", "dim first", "expanded"])
def test_any_strides(layout):
    q, k, v = inputs(2, 500, 2, 64, torch.bfloat16, device="cuda")
    mask = random_mask(500, 128, 128, heads=2, density=0.7, device="cuda")
    if layout == "packed":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    elif layout == "heads first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "odd offset":
        q, k, v = (torch.cat((x[..., :1], x), -1)[..., 1:] for x in (q, k, v))
    elif layout == "dim first":
        q, k, v = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v))
    else:
        k, v = (x[:, :, :1].expand(-1, -1, 2, -1) for x in (k, v))
    check(q, k, v, mask)
    check(q, k, v, mask, order=random_order(1, 2, 500, device="cuda"))


@pytest.mark.parametrize("shared", [True, False], ids=["one order", "an order a head"])
@pytest.mark.parametrize("query_block", [64, 128])
@pytest.mark.parametrize("dim", [64, 128])
def test_orders(shared, query_block, dim):
    q, k, v = inputs(2, 501, 3, dim, torch.bfloat16, device="cuda")
    order = random_order(1, 1, 501, device="cuda") if shared else random_order(2, 3, 501, device="cuda")
    for key_block in (64, 128):
        mask = random_mask(501, query_block, key_block, heads=3, device="cuda")
        check(q, k, v, mask, order=order)
        check(q, k, v, mask, order=order.long())


@pytest.mark.parametrize("query_block", [64, 128])
def test_heads_some_at_a_time_give_the_same(monkeypatch, query_block):
    q, k, v = inputs(2, 501, 3, 64, torch.bfloat16, device="cuda")
    mask = random_mask(501, query_block, 64, heads=3, device="cuda")
    order = random_order(1, 3, 501, device="cuda")
    want = check(q, k, v, mask, order=order)
    monkeypatch.setattr(hopper, "COPY_BYTES", 2 * 2 * k.numel() // 3)
    for got, wanted in zip(check(q, k, v, mask, order=order), want, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("query_block", [64, 128])
def test_queries_and_keys_of_different_length(query_block):
    for keys in (900, 60, 130):
        q, k, v = inputs(1, 200, 2, 128, torch.bfloat16, keys=keys, device="cuda")
        for key_block in (64, 128):
            check(q, k, v, random_mask(200, query_block, key_block, heads=2, density=0.7, keys=keys, device="cuda"))


def test_two_disjoint_masks_merge_into_dense():
    q, k, v = inputs(1, 1100, 2, 128, torch.bfloat16, device="cuda")
    mask = random_mask(1100, 128, 64, heads=2, density=0.5, device="cuda")
    rest = BlockMask(~mask.keep, mask.query, mask.key)
    (a, lse_a), (b, lse_b) = attend(q, k, v, mask), attend(q, k, v, rest)
    lse = torch.logaddexp(lse_a, lse_b)
    share_a, share_b = ((x - lse).exp().transpose(1, 2)[..., None] for x in (lse_a, lse_b))
    full = BlockMask.full(Partition(1100, 128), Partition(1100, 128), device="cuda")
    whole, whole_lse = attend(q, k, v, full)
    torch.testing.assert_close(lse, whole_lse, atol=1e-3, rtol=0)
    torch.testing.assert_close(share_a * a.float() + share_b * b.float(), whole.float(), atol=1e-2, rtol=2e-2)


@pytest.mark.parametrize("query_block", [64, 128])
def test_skipped_keys_have_no_influence_and_selected_ones_do(query_block):
    q, k, v = inputs(1, 1100, 2, 128, torch.bfloat16, device="cuda")
    mask = random_mask(1100, query_block, 64, heads=2, density=0.6, device="cuda")
    mask.keep[..., 1], mask.keep[..., 2] = False, True
    want, want_lse = attend(q, k, v, mask)
    k[:, 64:128], v[:, 64:128] = torch.nan, 1e30
    found, found_lse = attend(q, k, v, mask)
    assert torch.equal(found, want) and torch.equal(found_lse, want_lse)
    v[:, 128:192] += 1
    assert (attend(q, k, v, mask)[0] != want).any(-1).all()


def test_calls_repeat_bit_for_bit():
    q, k, v = inputs(1, 4111, 3, 128, torch.bfloat16, device="cuda")
    order = random_order(1, 3, 4111, device="cuda")
    for query_block in QUERY_BLOCKS:
        mask = random_mask(4111, query_block, 128, heads=3, density=0.3, device="cuda")
        for call in ({}, {"order": order}):
            want = attend(q, k, v, mask, **call)
            for _ in range(20):
                found = attend(q, k, v, mask, **call)
                assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])


@pytest.mark.parametrize("query_block", [64, 128])
def test_a_call_does_not_wait_for_the_card(query_block):
    q, k, v = inputs(1, 4111, 2, 64, torch.bfloat16, device="cuda")
    mask = random_mask(4111, query_block, 64, heads=2, device="cuda")
    orders = (None, random_order(1, 2, 4111, device="cuda"))
    for order in orders:
        attend(q, k, v, mask, order=order)
    torch.use_deterministic_algorithms(False)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for order in orders:
            again = BlockMask(mask.keep, mask.query, mask.key)
            hopper_block_sparse_attention(q, k, v, again, order=order, scale=0.1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
