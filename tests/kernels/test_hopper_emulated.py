"""The Hopper kernel's source, run in `gluon_emulator` against the oracle."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from cases import inputs, random_mask, random_order, rms_error
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kernels import gather_tokens
from dittools.kernels.block_sparse import hopper
from dittools.kernels.block_sparse.hopper import launch_arguments
from dittools.kernels.block_sparse.hopper_variants import tile_bytes, variant_of
from dittools.kernels.block_sparse.naive import naive_block_sparse_attention
from dittools.kernels.block_sparse.sample import draw_sample
from dittools.kernels.capability import why_no_gluon

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))


def run(q, k, v, mask, *, order=None, scale=0.1, key_bias=None, sample=None, programs=None, seed=0):
    from gluon_emulator import emulate

    from dittools.kernels.block_sparse.hopper_forward import block_sparse_forward

    out = torch.full_like(q, torch.nan, memory_format=torch.contiguous_format)
    lse = torch.full((q.shape[0], q.shape[2], q.shape[1]), torch.nan)
    placed = (k, v) if order is None else gather_tokens((k, v), order)
    tiles, arguments, options = launch_arguments(
        q, *placed, mask, scale, key_bias if sample is None else sample, order, (out, lse)
    )
    emulate(block_sparse_forward, programs or tiles, arguments, options, seed)
    exact, exact_lse = naive_block_sparse_attention(
        q.float(), k.float(), v.float(), mask, order=order, scale=scale, key_bias=key_bias, sample=sample
    )
    assert rms_error(out, exact) < 2.0**-7, rms_error(out, exact)
    # The RMS over all would forgive a few rows.
    worst = ((out.float() - exact).norm(dim=-1) / exact.norm(dim=-1).clamp_min(0.1)).max()
    assert worst < 0.05, worst
    empty = exact_lse.isneginf()
    assert torch.equal(lse.isneginf(), empty)
    assert (out.transpose(1, 2)[empty] == 0).all()
    torch.testing.assert_close(lse[~empty], exact_lse[~empty], atol=1e-4, rtol=1e-5)
    return out, lse


@settings(max_examples=80, deadline=None)
@given(
    queries=st.integers(1, 400),
    keys=st.integers(1, 700),
    dim=st.sampled_from([64, 128]),
    query_block=st.sampled_from([64, 128]),
    key_block=st.sampled_from([64, 128]),
    density=st.sampled_from([0.0, 0.15, 0.5, 1.0]),
    ordered=st.booleans(),
    beside=st.sampled_from([None, "bias", 1, 2, 4, 8, 16, 32]),
    some=st.booleans(),
    programs=st.sampled_from([None, 1, 2, 5]),
    seed=st.integers(0, 99),
)
def test_any_shape(**case):
    any_shape(SimpleNamespace(**case))


def any_shape(case):
    queries, keys, heads, seed = case.queries, case.queries if case.ordered else case.keys, 2, case.seed
    q, k, v = inputs(1, queries, heads, case.dim, torch.bfloat16, keys=keys, seed=seed)
    blocks = case.query_block, case.key_block
    mask = random_mask(queries, *blocks, heads=heads, density=case.density, keys=keys, seed=seed)
    bias = torch.randn(1, heads, mask.key.count) if case.beside == "bias" else None
    sample = None
    if isinstance(case.beside, int) and draw_sample(mask.key, case.beside, seed).positions.shape[1]:
        sample = draw_sample(mask.key, case.beside, seed)
        if case.some:  # one head sees none of them, the other a part
            sample = replace(sample, taken=torch.tensor([[0, sample.positions.shape[1] * 2 // 3]], dtype=torch.int32))
    order = random_order(1, heads, queries, seed) if case.ordered else None
    # A program a tile where they draw none from a queue.
    programs = case.programs if variant_of(case.dim, case.query_block, case.ordered).persistent else None
    run(q, k, v, mask, order=order, key_bias=bias, sample=sample, programs=programs, seed=seed)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("key_block", [64, 128])
@pytest.mark.parametrize("layout", ["packed", "heads first", "odd offset", "expanded"])
def test_strides_are_read_as_they_are_or_copied(layout, key_block, ordered):
    q, k, v = inputs(2, 200, 2, 64, torch.float16)
    if layout == "packed":
        q, k, v = torch.stack((q, k, v), 2).unbind(2)
    elif layout == "heads first":
        q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v))
    elif layout == "odd offset":
        q = torch.cat((q[..., :1], q), -1)[..., 1:]
    else:
        k, v = (x[:, :, :1].expand(-1, -1, 2, -1) for x in (k, v))
    order = random_order(2, 2, 200) if ordered else None
    run(q, k, v, random_mask(200, 128, key_block, 2, 2, density=0.6), order=order)


@pytest.mark.parametrize("query_block", [64, 128])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("keys", [1, 63, 64, 65, 128, 129, 191, 192, 193, 256])
def test_the_last_key_block_may_hold_half_its_keys_or_less(keys, dim, query_block):
    q, k, v = inputs(1, 192, 1, dim, torch.bfloat16, keys=keys)
    mask = random_mask(192, query_block, 128, density=1.0, keys=keys)
    mask.keep[0, 0, 0, -1], mask.keep[0, 0, 1] = False, False
    mask.keep[0, 0, 1, -1] = True
    bias = torch.randn(1, 1, mask.key.count)
    for key_bias in (None, bias):
        run(q, k, v, mask, key_bias=key_bias)


@pytest.mark.parametrize("lanes", [(1, 1), (1, 3), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("query_block", [64, 128])
def test_orders_are_shared_or_belong_to_a_batch_and_a_head(lanes, query_block):
    q, k, v = inputs(2, 150, 3, 64, torch.bfloat16)
    mask, order = random_mask(150, query_block, 64, 2, 3, density=0.6), random_order(*lanes, 150)
    run(q, k, v, mask, order=order, programs=3 if query_block == 128 else None)
    run(q, k, v, mask, order=order.long())
    run(q, k, v, mask, order=order.transpose(1, 2).contiguous().transpose(1, 2))


@pytest.mark.parametrize("query_block", [64, 128])
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("heads_at_a_time", [1, 2, 3])
def test_a_call_with_an_order_copies_k_and_v_some_heads_at_a_time(monkeypatch, lanes, heads_at_a_time, query_block):
    from gluon_emulator import emulate

    from dittools.kernels.block_sparse.hopper_forward import block_sparse_forward

    q, k, v = inputs(2, 200, 3, 64, torch.bfloat16)
    mask = random_mask(200, query_block, 64, 1, lanes, density=0.5)
    order, bias = random_order(1, lanes, 200), torch.randn(2, lanes, mask.key.count)
    launched = []

    def launch(*call):
        programs, arguments, options = launch_arguments(*call)
        launched.append(call[0].shape[2])
        call[7][0].fill_(torch.nan)
        emulate(block_sparse_forward, programs, arguments, options)

    monkeypatch.setattr(hopper, "_launch", launch)
    monkeypatch.setattr(hopper, "COPY_BYTES", 2 * 2 * k.numel() * heads_at_a_time // 3)
    call = {"order": order, "scale": 0.125}
    out, lse = hopper.hopper_block_sparse_attention(q, k, v, mask, beside=bias, **call)
    wanted = naive_block_sparse_attention(q.float(), k.float(), v.float(), mask, key_bias=bias, **call)
    assert launched == {1: [1, 1, 1], 2: [2, 1], 3: [3]}[heads_at_a_time]
    assert rms_error(out, wanted[0]) < 2.0**-7
    torch.testing.assert_close(lse, wanted[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("query_block", [64, 128])
def test_a_bias_of_minus_infinity_counts_as_skipped(query_block):
    mask = random_mask(150, query_block, 64, density=1.0)
    mask.keep[0, 0, -1] = torch.tensor([0, 1, 1])
    bias = torch.tensor([0.0, -torch.inf, -torch.inf]).view(1, 1, 3)
    for dim in (64, 128):  # tiles of 64 rows have slots of 128 keys at 64, and of 64 at 128
        q, k, v = inputs(1, 150, 1, dim, torch.bfloat16)
        _, lse = run(q, k, v, mask, key_bias=bias)
        assert lse[0, 0, 128:].isneginf().all()


@pytest.mark.parametrize("query_block", [64, 128])
def test_masks_and_biases_are_shared_or_belong_to_a_batch_and_a_head(query_block):
    q, k, v = inputs(2, 300, 3, 64, torch.bfloat16)
    for batches, heads in ((1, 3), (2, 1), (2, 3)):
        bias = torch.randn(batches, heads, 5)
        run(q, k, v, random_mask(300, query_block, 64, batches, heads, density=0.5), key_bias=bias)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("query_block", [64, 128])
def test_skipped_keys_have_no_influence(query_block, ordered):
    q, k, v = inputs(1, 300, 1, 64, torch.bfloat16)
    order = random_order(1, 1, 300) if ordered else None
    skipped = torch.arange(64, 128) if order is None else order[0, 0, 64:128].long()
    mask = random_mask(300, query_block, 64, density=0.6)
    mask.keep[..., 1] = False
    want, _ = run(q, k, v, mask, order=order)
    k[:, skipped], v[:, skipped] = 1e4, -1e30
    found, _ = run(q, k, v, mask, order=order)
    assert torch.equal(found, want)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_what_tiles_take_lets_two_programs_of_64_rows_share_a_multiprocessor(head_dim):
    half = (228 << 10) // 2 - (1 << 10)
    for ordered in (False, True):
        variant = variant_of(head_dim, 64, ordered)
        taken, slot = tile_bytes(head_dim, 64, ordered), 2 * 2 * head_dim * variant.slot
        assert taken < half - 1000 < taken + slot
        # Persistent programs have room for the output beside q, where no order scatters it.
        assert taken == slot * variant.stages + 2 * 64 * head_dim * (1 + (variant.persistent and not ordered))
