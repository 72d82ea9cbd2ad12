"""What every implementation of block_sparse_attention promises.

A test file imports these tests and says by a fixture named ``implementation`` which one it checks.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from cases import check, inputs, random_mask, random_order
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dittools.kernels import block_sparse_attention
from dittools.kernels.block_sparse.sample import draw_sample
from dittools.kernels.masks.block_mask import BlockMask, Partition

HALF, BF16, FULL = torch.float16, torch.bfloat16, torch.float32


def name(value):
    return str(value).removeprefix("torch.")


@pytest.mark.parametrize(
    ("tokens", "query_block", "key_block", "dim", "dtype"),
    [
        (63, 64, 64, 64, FULL),
        (111, 64, 64, 64, BF16),
        (111, 128, 128, 64, HALF),
        (256, 64, 128, 64, BF16),
        (300, 128, 64, 96, BF16),
        (300, 64, 128, 96, FULL),
        (257, 128, 128, 128, HALF),
        (256, 128, 64, 128, BF16),
        (1000, 64, 64, 64, BF16),
        (1000, 128, 128, 64, FULL),
    ],
    ids=name,
)
@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "ordered"])
def test_matches_the_oracle(implementation, tokens, query_block, key_block, dim, dtype, ordered):
    heads = 1 if tokens == 1000 else 2
    q, k, v = inputs(1, tokens, heads, dim, dtype)
    mask = random_mask(tokens, query_block, key_block, heads=heads, density=0.5)
    check(implementation, q, k, v, mask, order=random_order(1, heads, tokens) if ordered else None)


@pytest.mark.parametrize("mask_batches", [1, 2])
@pytest.mark.parametrize("mask_heads", [1, 3])
def test_masks_are_shared_or_belong_to_a_batch_and_a_head(implementation, mask_batches, mask_heads):
    q, k, v = inputs(2, 150, 3, 64)
    check(implementation, q, k, v, random_mask(150, 64, 64, mask_batches, mask_heads))


@pytest.mark.parametrize("order_batches", [1, 2])
@pytest.mark.parametrize("order_heads", [1, 3])
def test_orders_are_shared_or_belong_to_a_batch_and_a_head(implementation, order_batches, order_heads):
    q, k, v = inputs(2, 150, 3, 64)
    mask = random_mask(150, 64, 64, 2, 3)
    check(implementation, q, k, v, mask, order=random_order(order_batches, order_heads, 150))


def test_empty_rows_give_zeros_and_full_rows_everything(implementation):
    q, k, v = inputs(1, 260, 2, 64)
    mask = random_mask(260, 64, 64, heads=2)
    mask.keep[0, 0, 1], mask.keep[0, 0, 4], mask.keep[0, 1, 2], mask.keep[0, 1, 4] = False, False, True, True
    out, lse = check(implementation, q, k, v, mask)
    assert (out[0, 64:128, 0] == 0).all() and lse[0, 0, 64:128].isneginf().all()


def test_a_mask_that_keeps_nothing(implementation):
    q, k, v = inputs(1, 100, 1, 64)
    out, lse = check(implementation, q, k, v, random_mask(100, 64, 64, density=0.0))
    assert (out == 0).all() and lse.isneginf().all()


@pytest.mark.parametrize("dtype", [FULL, BF16], ids=name)
def test_a_full_mask_is_dense_attention(implementation, dtype):
    q, k, v = inputs(2, 200, 2, 64, dtype)
    mask = BlockMask.full(Partition(200, 64), Partition(200, 128))
    out, _ = check(implementation, q, k, v, mask)
    dense = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    tolerance = 1e-5 if dtype == FULL else 2e-2
    torch.testing.assert_close(out, dense, atol=tolerance, rtol=tolerance)


def test_queries_and_keys_of_different_length(implementation):
    q, k, v = inputs(1, 70, 2, 64, keys=300)
    check(implementation, q, k, v, random_mask(70, 64, 128, heads=2, keys=300))


def test_the_scale_is_applied(implementation):
    q, k, v = inputs(1, 130, 1, 64)
    check(implementation, q, k, v, random_mask(130, 64, 64, density=0.6), scale=0.5)


@pytest.mark.parametrize("dtype", [FULL, BF16], ids=name)
def test_key_bias_is_added_to_the_logits_of_a_block(implementation, dtype):
    q, k, v = inputs(2, 300, 2, 64, dtype)
    mask = random_mask(300, 64, 64, heads=2, density=0.6)
    bias = torch.randn(2, 1, mask.key.count, generator=torch.Generator().manual_seed(1))
    check(implementation, q, k, v, mask, key_bias=bias, order=random_order(1, 2, 300))


def test_a_block_biased_to_minus_infinity_counts_as_skipped(implementation):
    q, k, v = inputs(1, 150, 1, 64)
    mask = random_mask(150, 64, 64, density=0.6)
    mask.keep[:] = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]], dtype=torch.bool)
    bias = torch.tensor([-torch.inf, 0.0, -torch.inf]).view(1, 1, 3)
    _, lse = check(implementation, q, k, v, mask, key_bias=bias)
    assert lse[0, 0, :64].isneginf().all()


@pytest.mark.parametrize(
    ("tokens", "query_block", "key_block", "dim", "dtype", "per"),
    [
        (300, 64, 64, 64, FULL, 1),
        (500, 128, 128, 128, BF16, 8),
        (257, 128, 64, 96, HALF, 4),
        (400, 64, 128, 64, BF16, 32),
    ],
    ids=name,
)
@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "ordered"])
def test_drawn_keys_stand_for_the_blocks_that_a_row_skips(
    implementation, tokens, query_block, key_block, dim, dtype, per, ordered
):
    q, k, v = inputs(2, tokens, 2, dim, dtype)
    mask = random_mask(tokens, query_block, key_block, batches=2, heads=2, density=0.4)
    mask.keep[0, 0, 0], mask.keep[0, 1, 0] = False, True  # a row that sees what was drawn alone, one that sees none
    order = random_order(1, 2, tokens) if ordered else None
    sample = draw_sample(mask.key, per, 3)
    for taken in (None, torch.tensor([[sample.positions.shape[1] // 2, 0]], dtype=torch.int32)):
        out, lse = check(implementation, q, k, v, mask, order=order, sample=replace(sample, taken=taken))
        assert out.isfinite().all() and (taken is not None or lse.isfinite().all())
    beside = [sample.positions.shape[1]] * 2, [0, 3]  # batches of their own
    check(implementation, q, k, v, mask, sample=replace(sample, taken=torch.tensor(beside, dtype=torch.int32)))


def test_keys_neither_kept_nor_drawn_have_no_say(implementation):
    q, k, v = inputs(1, 300, 1, 64)
    mask = random_mask(300, 64, 64, density=0.0)
    mask.keep[..., 1] = True
    sample = draw_sample(mask.key, 4, 5)
    seen = torch.zeros(300, dtype=torch.bool)
    seen[64:128] = True
    for row in range(mask.query.count):
        seen[sample.seen(row)] = True
    assert not seen.all()
    for x in (k, v):
        x[:, ~seen] = torch.nan
    call = {"sample": sample, "implementation": implementation}
    out = block_sparse_attention(q, k, v, mask, **call)
    assert out.isfinite().all()
    v[:, sample.seen(2)[-1]] = torch.nan
    rows = block_sparse_attention(q, k, v, mask, **call).isnan().any((0, 2, 3)).view(-1)
    assert rows.nonzero().flatten().tolist() == list(range(128, 192))  # no other block saw that draw


@pytest.mark.parametrize("layout", ["packed", "heads first", "dim first"])
def test_any_strides(implementation, layout):
    q, k, v = inputs(2, 111, 2, 64)
    mask = random_mask(111, 64, 64, heads=2, density=0.7)
    want, _ = check(implementation, q, k, v, mask)
    if layout == "packed":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    elif layout == "heads first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    else:
        q, k, v = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k, v))
    order = random_order(1, 2, 111)[..., None].repeat(1, 1, 1, 2)[..., 0]
    torch.testing.assert_close(check(implementation, q, k, v, mask)[0], want)
    check(implementation, q, k, v, mask, order=order)


@pytest.mark.parametrize("ordered", [False, True], ids=["raster", "ordered"])
def test_keys_that_are_not_selected_have_no_influence(implementation, ordered):
    q, k, v = inputs(1, 200, 2, 64)
    mask = random_mask(200, 64, 64, heads=2)
    mask.keep[..., 1] = False
    order = random_order(1, 2, 200) if ordered else None
    call = {"order": order, "return_lse": True, "implementation": implementation}
    want = block_sparse_attention(q, k, v, mask, **call)
    for head in range(2):
        skipped = slice(64, 128) if order is None else order[0, head, 64:128].long()
        k[0, skipped, head] = torch.nan
        v[0, skipped, head] = 1e30
    found = block_sparse_attention(q, k, v, mask, **call)
    assert torch.equal(found[0], want[0]) and torch.equal(found[1], want[1])


def test_every_selected_key_has_influence(implementation):
    q, k, v = inputs(1, 200, 1, 64)
    mask = random_mask(200, 64, 64, density=0.5, seed=3)
    before = block_sparse_attention(q, k, v, mask, implementation=implementation)
    for block in range(mask.key.count):
        changed = v.clone()
        changed[0, block * 64 : (block + 1) * 64] += 1.0
        after = block_sparse_attention(q, k, changed, mask, implementation=implementation)
        moved = (after != before).any(-1)[0, :, 0]
        assert torch.equal(moved, mask.keep[0, 0, :, block].repeat_interleave(64)[:200])


def test_two_disjoint_masks_merge_by_their_lse_into_dense_attention(implementation):
    q, k, v = inputs(1, 300, 2, 64)
    one = random_mask(300, 64, 64, heads=2, density=0.5)
    other = BlockMask(~one.keep, one.query, one.key)
    call = {"order": random_order(1, 2, 300), "return_lse": True, "implementation": implementation}
    (out_a, lse_a), (out_b, lse_b) = (block_sparse_attention(q, k, v, m, **call) for m in (one, other))
    total = torch.logaddexp(lse_a, lse_b)
    share_a, share_b = ((x - total).exp().transpose(1, 2)[..., None] for x in (lse_a, lse_b))
    dense = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)
    torch.testing.assert_close(share_a * out_a + share_b * out_b, dense, atol=2e-5, rtol=1e-4)


def test_large_logits_do_not_overflow(implementation):
    q, k, v = inputs(1, 200, 1, 64)
    out, _ = check(implementation, q * 30, k * 30, v, random_mask(200, 64, 64, density=0.6))
    assert out.isfinite().all()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batches=st.integers(1, 2),
    heads=st.integers(1, 2),
    tokens=st.integers(1, 200),
    query_block=st.sampled_from([64, 128]),
    key_block=st.sampled_from([64, 128]),
    density=st.floats(0, 1),
    ordered=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_any_mask_on_any_size(implementation, batches, heads, tokens, query_block, key_block, density, ordered, seed):
    q, k, v = inputs(batches, tokens, heads, 64, seed=seed)
    mask = random_mask(tokens, query_block, key_block, batches, heads, density, seed=seed)
    check(implementation, q, k, v, mask, order=random_order(batches, heads, tokens, seed) if ordered else None)
