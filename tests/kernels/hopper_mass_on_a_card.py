"""The Hopper kernel for block mass on a card of compute capability 9.x, against the oracle.

`test_hopper_mass_gpu.py` runs each of these in a process of its own: a kernel that hangs cannot be interrupted.
"""

import pytest
import torch
from cases import inputs
from places import no_sync

from dittools.kernels import measure_block_mass, measure_lse
from dittools.kernels.block_mass.hopper import hopper_block_mass, hopper_lse
from dittools.kernels.block_mass.naive import naive_block_mass
from dittools.kernels.capability import why_not_hopper_mass
from dittools.kernels.masks.block_mask import Partition
from dittools.kernels.proof.mass import judge, judge_lse

WHY_NOT = why_not_hopper_mass(torch.empty(1, 1, 1, 128, dtype=torch.bfloat16, device="meta"))
if torch.cuda.is_available():
    WHY_NOT = why_not_hopper_mass(torch.empty(1, 1, 1, 128, dtype=torch.bfloat16, device="cuda"))
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))]

BLOCKS = [(128, 128), (128, 64), (64, 128), (64, 64)]


def check(q, k, blocks, scale=None):
    """Both passes in one and apart, against the oracle over every block."""
    query, key = Partition(q.shape[1], blocks[0]), Partition(k.shape[1], blocks[1])
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    want = naive_block_mass(q, k, query, key, scale=scale)
    exact = (torch.einsum("bqhd,bkhd->bhqk", q.double(), k.double()) * scale).logsumexp(-1).float()
    lse = hopper_lse(q, k, scale)
    torch.testing.assert_close(lse, exact, atol=2e-3, rtol=1e-5)
    for known in (None, lse):
        found = hopper_block_mass(q, k, query, key, scale, known)
        torch.testing.assert_close(found, want, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("blocks", BLOCKS, ids=str)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (500, 1100), (1100, 63)])
def test_it_matches_the_oracle(dtype, dim, blocks, queries, keys):
    q, k, _ = inputs(2, queries, 3, dim, dtype, keys=keys, device="cuda")
    check(q, k, blocks)


@pytest.mark.parametrize("tokens", [4111, 32760])
@pytest.mark.parametrize("dim", [64, 128])
def test_long_ragged_sequences_match_on_sampled_blocks_and_repeat_bit_for_bit(tokens, dim):
    q, k, _ = inputs(1, tokens, 3, dim, torch.bfloat16, device="cuda")
    partition = Partition(tokens, 128)
    lse = hopper_lse(q, k, 0.1)
    mass = hopper_block_mass(q, k, partition, partition, 0.1, None)
    judge(q, k, partition, partition, 0.1, mass)
    judge_lse(q, k, partition, 0.1, lse)
    for _ in range(10):
        assert torch.equal(hopper_block_mass(q, k, partition, partition, 0.1, None), mass)


@pytest.mark.parametrize("loud", [slice(0, 300), slice(-300, None), slice(400, 500)], ids=str)
def test_an_lse_far_from_what_the_first_keys_say(loud):
    q, k, _ = inputs(1, 1000, 2, 64, torch.bfloat16, device="cuda")
    k[:, loud, 0] *= 60
    check(q, k, (128, 128))


@pytest.mark.parametrize("layout", ["packed", "heads first", "odd offset", "dim first", "expanded"])
def test_any_strides(layout):
    q, k, _ = inputs(2, 500, 2, 64, torch.bfloat16, device="cuda")
    if layout == "packed":
        q, k = torch.stack((q, k), 2).unbind(2)
    elif layout == "heads first":
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    elif layout == "odd offset":
        q, k = (torch.cat((x[..., :1], x), -1)[..., 1:] for x in (q, k))
    elif layout == "dim first":
        q, k = (x.transpose(1, 3).contiguous().transpose(1, 3) for x in (q, k))
    else:
        k = k[:, :, :1].expand(-1, -1, 2, -1)
    check(q, k, (128, 64))


def test_a_call_by_name_does_not_wait_for_the_card():
    q, k, _ = inputs(1, 4111, 2, 64, torch.bfloat16, device="cuda")
    partition = Partition(4111, 128)
    call = {"implementation": "hopper"}
    lse = measure_lse(q, k, **call)
    measure_block_mass(q, k, partition, partition, **call)
    with no_sync():
        measure_block_mass(q, k, partition, partition, **call)
        found = measure_block_mass(q, k, partition, partition, lse=lse, **call)
    judge(q, k, partition, partition, q.shape[-1] ** -0.5, found)
    judge_lse(q, k, partition, q.shape[-1] ** -0.5, lse)
