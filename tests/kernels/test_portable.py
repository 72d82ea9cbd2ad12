import pytest
import torch
from cases import check, inputs, random_mask, random_order
from contract import *  # noqa: F403

from dittools.kernels import block_sparse_attention, portable


@pytest.fixture(params=["portable"])
def implementation(request):
    return request.param


@pytest.mark.parametrize(("query_block", "key_block", "dim"), [(16, 24, 32), (7, 300, 20), (1, 1, 8)])
def test_any_block_size_and_head_dim(query_block, key_block, dim):
    q, k, v = inputs(1, 100, 2, dim)
    check("portable", q, k, v, random_mask(100, query_block, key_block, heads=2))


def test_it_computes_the_pairs_it_keeps_and_no_others(monkeypatch):
    q, k, v = inputs(1, 640, 3, 64)
    mask = random_mask(640, 64, 64, heads=3, density=0.2)
    pairs, attend = [], portable._attend

    def counting(q, k, *rest):
        pairs.append(q.shape[0] * q.shape[1] * k.shape[1])
        return attend(q, k, *rest)

    monkeypatch.setattr(portable, "_attend", counting)
    block_sparse_attention(q, k, v, mask, implementation="portable")
    assert sum(pairs) == round(mask.density().sum().item() * 640 * 640)


def test_memory_of_a_gather_is_bounded(monkeypatch):
    monkeypatch.setattr(portable, "CPU_GATHER_BYTES", 1)
    monkeypatch.setattr(portable, "MAX_GATHER_BYTES", 1)
    q, k, v = inputs(1, 300, 2, 64)
    check("portable", q, k, v, random_mask(300, 64, 64, heads=2), order=random_order(1, 2, 300))


def test_without_the_lse_the_output_is_the_same():
    q, k, v = inputs(1, 300, 2, 64)
    mask = random_mask(300, 64, 64, heads=2)
    out, _ = block_sparse_attention(q, k, v, mask, return_lse=True, implementation="portable")
    torch.testing.assert_close(block_sparse_attention(q, k, v, mask, implementation="portable"), out)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qkv"])
def test_gradients_flow(wanted):
    tensors = dict(zip("qkv", inputs(1, 300, 1, 32), strict=True))
    leaves = [tensors[name].requires_grad_() for name in wanted]
    mask = random_mask(300, 64, 64, density=0.5)
    order = random_order(1, 1, 300)
    grads = [
        torch.autograd.grad(
            block_sparse_attention(*tensors.values(), mask, order=order, implementation=name).square().sum(),
            leaves,
        )
        for name in ("portable", "naive")
    ]
    for found, want in zip(*grads, strict=True):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)
