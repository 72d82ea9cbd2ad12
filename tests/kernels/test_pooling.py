import pytest
import torch
from cases import inputs
from hypothesis import given, settings
from hypothesis import strategies as st
from places import GPU

from dittools.kernels import pool_blocks
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.segment_mean.naive import naive_pool_blocks


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 60),
    size=st.integers(1, 70),
    how=st.sampled_from(["mean", "max"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_blocks_are_pooled_with_the_ragged_tail_as_it_is(tokens, size, how, dtype, seed):
    x = inputs(2, tokens, 3, 5, dtype, seed=seed)[0]
    partition = Partition(tokens, size)
    found = pool_blocks(x, partition, how=how)
    assert found.shape == (2, partition.count, 3, 5) and found.dtype == torch.float32
    torch.testing.assert_close(found, naive_pool_blocks(x, partition, how=how), atol=1e-6, rtol=1e-6)


def test_any_strides():
    x = inputs(2, 50, 2, 8)[0]
    want = pool_blocks(x, Partition(50, 16))
    torch.testing.assert_close(pool_blocks(x.transpose(1, 3).contiguous().transpose(1, 3), Partition(50, 16)), want)
    torch.testing.assert_close(pool_blocks(torch.stack((x, x), 2)[:, :, 1], Partition(50, 16)), want)


def test_sums_of_low_precision_are_accumulated_in_fp32():
    x = torch.full((1, 4096, 1, 1), 1.0, dtype=torch.bfloat16)
    x[:, ::2] = 1.0078125  # a running sum in bf16 would stop growing
    assert pool_blocks(x, Partition(4096, 4096)).item() == 1.00390625


def test_gradients_flow():
    x = inputs(1, 10, 1, 2)[0].requires_grad_()
    (gradient,) = torch.autograd.grad(pool_blocks(x, Partition(10, 4)).sum(), x)
    torch.testing.assert_close(gradient[0, :, 0, 0], torch.tensor([0.25] * 8 + [0.5] * 2))


@pytest.mark.parametrize(
    ("shape", "how", "message"),
    [
        ((10, 2, 4), "mean", r"x must be \[B, 10, H, D\], got \[10, 2, 4\]"),
        ((1, 9, 2, 4), "mean", r"got \[1, 9, 2, 4\]"),
        ((1, 10, 2, 4), "median", "how must be mean or max, got 'median'"),
    ],
)
def test_a_wrong_call_is_refused(shape, how, message):
    with pytest.raises(ValueError, match=message):
        pool_blocks(torch.zeros(shape), Partition(10, 4), how=how)


@pytest.mark.parametrize("how", [pytest.param(how, marks=GPU) for how in ("mean", "max")])
def test_long_sequences_on_the_gpu(how):
    x = inputs(1, 32_760, 4, 128, torch.bfloat16, device="cuda")[0]
    partition = Partition(32_760, 128)
    want = naive_pool_blocks(x, partition, how=how)
    torch.testing.assert_close(pool_blocks(x, partition, how=how), want, atol=1e-5, rtol=1e-5)
