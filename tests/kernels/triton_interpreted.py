"""The Triton kernel under the contract, in Triton's interpreter; `test_triton.py` runs this as a process."""

import interpreter  # noqa: F401 (repairs the interpreter)
import pytest
import torch
from cases import check, inputs, random_mask, random_order
from contract import *  # noqa: F403

from dittools.kernels import triton_block_sparse


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
