import pytest
import torch
from cases import check, inputs, random_mask, random_order
from contract import *  # noqa: F403

from dittools.kernels import block_sparse_attention
from dittools.kernels.block_sparse import portable
from dittools.kernels.masks.block_mask import BlockMask, Partition


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
    pairs, attend = [], portable.attend

    def counting(q, k, *rest):
        pairs.append(q.shape[0] * q.shape[1] * k.shape[1])
        return attend(q, k, *rest)

    monkeypatch.setattr(portable, "attend", counting)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["portable", "naive"])
def test_gradients_of_rows_that_see_only_blocks_biased_to_nothing_are_zero(name, dtype):
    q, k, v = (x.requires_grad_() for x in inputs(1, 6, 2, 8, dtype))
    keep = torch.tensor([[1, 0, 0], [0, 1, 1], [1, 1, 0]]).bool()[None, None]
    mask = BlockMask(keep, Partition(6, 2), Partition(6, 2))
    bias = torch.tensor([[[0.5, -torch.inf, -torch.inf]]])  # the second row of blocks sees nothing
    out = block_sparse_attention(q, k, v, mask, key_bias=bias, implementation=name)
    found = torch.autograd.grad(out.float().square().sum(), (q, k, v))
    seen = q.detach().float(), k[:, :2].detach().float(), v[:, :2].detach().float()
    alone = [x.requires_grad_() for x in seen]
    logits = torch.einsum("bqhd,bkhd->bhqk", alone[0][:, [0, 1, 4, 5]], alone[1]) * 8**-0.5 + 0.5
    want = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), alone[2]).square().sum()
    want = torch.autograd.grad(want, alone)
    assert found[0][:, 2:4].eq(0).all() and found[1][:, 2:].eq(0).all() and found[2][:, 2:].eq(0).all()
    close = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(found[0].float(), want[0], **close)
    for part, whole in zip(found[1:], want[1:], strict=True):
        torch.testing.assert_close(part[:, :2].float(), whole, **close)
