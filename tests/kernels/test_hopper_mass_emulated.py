"""The source of the Hopper kernel for block mass, run in `gluon_emulator` against the oracle."""

import pytest
import torch
from cases import inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kernels.block_mass.hopper import lse_arguments, mass_arguments
from dittools.kernels.block_mass.naive import naive_block_mass
from dittools.kernels.capability import why_no_gluon
from dittools.kernels.masks.block_mask import Partition

pytestmark = pytest.mark.skipif(why_no_gluon() is not None, reason=str(why_no_gluon()))


def emulated(result, programs, arguments, options, seed):
    from gluon_emulator import emulate

    from dittools.kernels.block_mass.hopper_forward import block_mass_forward

    result.fill_(torch.nan)
    emulate(block_mass_forward, programs, arguments, options, seed)
    return result


def log_sum_exp(q, k, scale):
    return (torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale).logsumexp(-1).float()


def run(q, k, blocks=(128, 128), *, scale=0.1, seed=0):
    """Both passes, each against the oracle: (lse, mass)."""
    query, key = Partition(q.shape[1], blocks[0]), Partition(k.shape[1], blocks[1])
    exact = log_sum_exp(q, k, scale)
    lse = emulated(*lse_arguments(q, k, scale), seed)
    torch.testing.assert_close(lse, exact, atol=1e-4, rtol=1e-5)
    mass = emulated(*mass_arguments(q, k, query, key, scale, exact), seed)
    torch.testing.assert_close(mass, naive_block_mass(q, k, query, key, scale=scale), atol=1e-4, rtol=1e-3)
    return lse, mass


@settings(max_examples=40, deadline=None)
@given(
    queries=st.integers(1, 600),
    keys=st.integers(1, 1500),
    dim=st.sampled_from([64, 128]),
    blocks=st.sampled_from([(128, 128), (128, 64), (64, 128), (64, 64)]),
    seed=st.integers(0, 99),
)
def test_any_shape(queries, keys, dim, blocks, seed):
    q, k, _ = inputs(1, queries, 2, dim, torch.bfloat16, keys=keys, seed=seed)
    run(q, k, blocks, seed=seed)


@pytest.mark.parametrize("layout", ["packed", "heads first", "odd offset", "expanded"])
def test_strides_are_read_as_they_are_or_copied(layout):
    q, k, _ = inputs(2, 200, 2, 64, torch.float16)
    if layout == "packed":
        q, k = torch.stack((q, k), 2).unbind(2)
    elif layout == "heads first":
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    elif layout == "odd offset":
        q = torch.cat((q[..., :1], q), -1)[..., 1:]
    else:
        k = k[:, :, :1].expand(-1, -1, 2, -1)
    run(q, k)


def test_an_lse_of_any_strides_with_rows_that_had_no_key():
    q, k, _ = inputs(2, 300, 2, 64, torch.bfloat16)
    query, key = Partition(300, 64), Partition(300, 128)
    lse = log_sum_exp(q, k, 0.1)
    lse[..., 64:128] = -torch.inf
    lse = lse.transpose(0, 2).contiguous().transpose(0, 2)
    mass = emulated(*mass_arguments(q, k, query, key, 0.1, lse), 0)
    assert (mass[:, :, 1] == 0).all()
    want = naive_block_mass(q, k, query, key, scale=0.1)
    want[:, :, 1] = 0
    torch.testing.assert_close(mass, want, atol=1e-4, rtol=1e-3)


def test_an_lse_far_above_the_first_slot_is_not_finite_or_right():
    q, k, _ = inputs(1, 130, 3, 64, torch.bfloat16, keys=500)
    k[:, :400, 0] *= 40  # slots are walked from the end: this head says so late that it is large
    k[:, 490:, 1] *= 40  # a head whose first slot is all that counts
    exact = log_sum_exp(q, k, 1.0)
    lse = emulated(*lse_arguments(q, k, 1.0), 0)
    right = (lse - exact).abs() < 1e-3 + 1e-5 * exact.abs()
    assert right[0, 1:].all() and not right[0, 0].all()
    assert (right | lse.isposinf()).all()


def test_a_key_that_is_not_there_has_no_influence():
    q, k, _ = inputs(1, 100, 1, 64, torch.bfloat16, keys=384)
    want = run(q, k[:, :200])
    k[:, 200:] = 1e4
    found = run(q, k[:, :200])
    assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))
