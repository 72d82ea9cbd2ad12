"""The Triton kernel under the contract, in Triton's interpreter; `test_triton.py` runs this as a process."""

import interpreter  # noqa: F401 (repairs the interpreter)
import pytest
import torch
from cases import check, inputs, random_mask, random_order
from contract import *  # noqa: F403

from dittools.kernels import block_sparse_attention, schedule
from dittools.kernels.block_sparse import triton as triton_block_sparse


@pytest.fixture(params=["triton"])
def implementation(request):
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [290, 384])
def test_tiles_smaller_than_blocks(monkeypatch, dtype, tokens):
    tiles = {"BM": 32, "BN": 32, "num_warps": 4, "num_stages": 2}
    monkeypatch.setattr(triton_block_sparse, "tile_shape", lambda *_: tiles)
    q, k, v = inputs(1, tokens, 1, 64, dtype)
    mask = random_mask(tokens, 64, 128, density=0.6)
    mask.keep[0, 0, 0] = torch.arange(mask.key.count) == mask.key.count - 1
    check("triton", q, k, v, mask, order=random_order(1, 1, tokens))


@pytest.mark.parametrize(
    ("tokens", "dtype"), [(290, torch.float32), (330, torch.float32), (330, torch.bfloat16)], ids=str
)
def test_a_schedule_changes_when_rows_start_and_nothing_else(tokens, dtype):
    q, k, v = inputs(2, tokens, 2, 64, dtype)
    # fp32 tiles are half of these blocks, and the ragged last block starts first where its list is the longest.
    mask = random_mask(tokens, 128, 64, 2, 2, density=0.5)
    mask.keep[0, 0, -1], mask.keep[0, 1, 0] = True, False
    order = random_order(1, 2, tokens)
    call = {"order": order, "scale": 0.125}
    wanted = triton_block_sparse.triton_block_sparse_attention(q, k, v, mask, **call)
    starts = schedule(mask.kv_blocks()[0])
    assert not torch.equal(starts[0, 0], torch.arange(mask.query.count).int())
    found = triton_block_sparse.triton_block_sparse_attention(q, k, v, mask, schedule=starts, **call)
    exact = block_sparse_attention(q, k, v, mask, implementation="naive", return_lse=True, **call)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
    torch.testing.assert_close(found[1], exact[1], atol=1e-4, rtol=1e-5)
