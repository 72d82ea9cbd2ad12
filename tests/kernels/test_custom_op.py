import pytest
import torch
from cases import inputs, random_mask, random_order
from places import GPU
from torch._dynamo.testing import CompileCounterWithBackend

from dittools.kernels import (
    block_sparse_attention,
    block_sparse_attention_op,
    draw_sample,
    from_mass,
    from_top_k,
    pool_blocks,
)
from dittools.kernels.masks.block_mask import BlockMask, Partition

BLOCKS = {"query_block": 64, "key_block": 32}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_the_op_is_the_call_over_lists():
    q, k, v = inputs(2, 150, 2, 32)
    mask, order = random_mask(150, 64, 32, 1, 2), random_order(1, 2, 150)
    bias = torch.randn(2, 1, mask.key.count, generator=torch.Generator().manual_seed(1))
    call = {"order": order, "scale": 0.3, "key_bias": bias}
    want = block_sparse_attention(q, k, v, mask, return_lse=True, **call)
    found = block_sparse_attention_op(q, k, v, *mask.kv_blocks(), **BLOCKS, return_lse=True, **call)
    assert all(torch.equal(x, y) for x, y in zip(found, want, strict=True))
    assert torch.equal(block_sparse_attention_op(q, k, v, *mask.kv_blocks(), **BLOCKS, **call), want[0])
    assert hasattr(torch.ops.dittools, "block_sparse_attention")


@pytest.mark.parametrize("implementation", ["portable", "naive"])
@pytest.mark.parametrize("optional", [False, True], ids=["plain", "order and bias"])
def test_the_op_keeps_the_rules_of_torch(implementation, optional):
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(1, 70, 2, 16))
    mask = random_mask(70, 64, 32, heads=2)
    order = random_order(1, 2, 70) if optional else None
    bias = torch.zeros(1, 1, mask.key.count) if optional else None
    args = (q, k, v, *mask.kv_blocks(), 64, 32, 0.25, order, bias, implementation)
    torch.library.opcheck(torch.ops.dittools.block_sparse_attention.default, args)


def step(q, k, v, counts, indices, order):
    """What stands around attention in a model: something before, something after."""
    out, lse = block_sparse_attention_op(q * 2, k, v, counts, indices, order=order, return_lse=True, **BLOCKS)
    return out + 1, lse.exp()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch.no_grad()
def test_one_graph_serves_every_mask(backend):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    for seed in range(4):
        q, k, v = inputs(1, 150, 2, 32, seed=seed)
        # From step to step the kept blocks and their numbers change: first all, then few, at last none.
        counts, indices = random_mask(150, 64, 32, heads=2, density=1 - seed / 3, seed=seed).kv_blocks()
        order = random_order(1, 2, 150, seed)
        found = compiled(q, k, v, counts, indices, order)
        for x, y in zip(found, step(q, k, v, counts, indices, order), strict=True):
            torch.testing.assert_close(x, y)
    assert counter.frame_count == 1


@torch.no_grad()
def test_selection_is_traced_into_the_same_graph():
    query_blocks, key_blocks = random_mask(150, 64, 32).query, random_mask(150, 64, 32).key

    def attend(q, k, v):
        coarse = pool_blocks(q, query_blocks), pool_blocks(k, key_blocks)
        scores = torch.einsum("bmhd,bnhd->bhmn", *coarse)
        one = block_sparse_attention_op(q, k, v, *from_top_k(scores, 2), **BLOCKS)
        return one + block_sparse_attention_op(q, k, v, *from_mass(scores.softmax(-1), 0.5), **BLOCKS)

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(attend, fullgraph=True, backend=counter)
    for seed in range(3):
        tensors = inputs(1, 150, 2, 32, seed=seed)
        torch.testing.assert_close(compiled(*tensors), attend(*tensors))
    assert counter.frame_count == 1


def test_wrong_lists_are_refused_when_the_op_runs():
    q, k, v = inputs(1, 150, 2, 32)
    counts, indices = random_mask(100, 64, 32).kv_blocks()
    with pytest.raises(ValueError, match="lists have 2 rows of 4 blocks, but their partitions have 3 x 5"):
        block_sparse_attention_op(q, k, v, counts, indices, **BLOCKS)
    with pytest.raises(ValueError, match="the operator takes no sample"):
        block_sparse_attention_op(q, k, v, counts, indices, sample=draw_sample(Partition(150, 32), 4, 0), **BLOCKS)
    with pytest.raises(ValueError, match="implementation 'triton' cannot run this call"):
        block_sparse_attention_op(
            q, k, v, *random_mask(150, 64, 32).kv_blocks(), implementation="triton", query_block=64, key_block=32
        )


@pytest.mark.parametrize("backend", [pytest.param("inductor", marks=GPU)])
@torch.no_grad()
def test_one_graph_serves_every_mask_on_the_gpu(backend):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(step_128, fullgraph=True, backend=counter)
    for seed in range(3):
        q, k, v = inputs(1, 1000, 2, 64, torch.bfloat16, seed=seed, device="cuda")
        mask = random_mask(1000, 128, 128, heads=2, density=0.3 * (seed + 1), seed=seed, device="cuda")
        made = BlockMask.from_kv_blocks(*mask.kv_blocks(), mask.query, mask.key)
        found, want = compiled(q, k, v, *mask.kv_blocks()), block_sparse_attention(q, k, v, made) + 1
        torch.testing.assert_close(found, want, atol=1e-2, rtol=1e-2)
    assert counter.frame_count == 1


def step_128(q, k, v, counts, indices):
    return block_sparse_attention_op(q, k, v, counts, indices, query_block=128, key_block=128) + 1
