import pytest
import torch
from cases import inputs, random_order
from places import GPU, everywhere, no_sync

from dittools.kernels import gather_tokens, scatter_tokens
from dittools.kernels.permute.naive import naive_permute


def check(tensors, order, place):
    implementation, device = place
    tensors, order = [x.to(device) for x in tensors], order.to(device)
    gathered = gather_tokens(tensors, order, implementation=implementation)
    scattered = scatter_tokens(tensors, order, implementation=implementation)
    for x, there, back in zip(tensors, gathered, scattered, strict=True):
        assert there.shape == x.shape and there.dtype == x.dtype and there.is_contiguous()
        assert torch.equal(there, naive_permute(x, order))
        assert torch.equal(back, naive_permute(x, order, back=True))
    for x, again in zip(tensors, scatter_tokens(gathered, order, implementation=implementation), strict=True):
        assert torch.equal(x, again)


@everywhere
@pytest.mark.parametrize(("tokens", "dim"), [(63, 64), (111, 96), (300, 128), (1, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_tokens_move_into_the_order_and_back(place, tokens, dim, dtype):
    check(inputs(2, tokens, 2, dim, dtype), random_order(2, 2, tokens), place)


@everywhere
@pytest.mark.parametrize("batches", [1, 2])
@pytest.mark.parametrize("heads", [1, 3])
def test_orders_are_shared_or_belong_to_a_batch_and_a_head(place, batches, heads):
    check(inputs(2, 70, 3, 16), random_order(batches, heads, 70), place)


@everywhere
@pytest.mark.parametrize("count", [1, 2])
def test_fewer_tensors_in_a_pass(place, count):
    check(inputs(1, 70, 2, 16)[:count], random_order(1, 2, 70).long(), place)


@everywhere
def test_any_strides(place):
    q, k, v = inputs(2, 50, 2, 16)
    packed = torch.stack((q, k, v), 2).unbind(2)
    heads_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    dim_first = v.transpose(1, 3).contiguous().transpose(1, 3)
    order = random_order(1, 2, 50)
    check(packed, order, place)
    check((q, heads_first, dim_first), order, place)
    check((q,), torch.stack((order, order), -1)[..., 0], place)


def test_gradients_flow_through_the_portable_path():
    x = inputs(1, 20, 2, 4)[0].requires_grad_()
    order = random_order(1, 2, 20)
    for move in (gather_tokens, scatter_tokens):
        (moved,) = move((x,), order)
        (gradient,) = torch.autograd.grad((moved * moved.detach()).sum(), x)
        torch.testing.assert_close(gradient, x)


@pytest.mark.parametrize(
    ("tensors", "order", "message"),
    [
        ([], random_order(1, 1, 8), "takes 1 to 3 tensors, got 0"),
        ([torch.zeros(8, 2, 4)], random_order(1, 1, 8), r"must be \[B, S, H, D\].*\[8, 2, 4\]"),
        ([torch.zeros(1, 8, 2, 4), torch.zeros(1, 8, 2, 5)], random_order(1, 1, 8), "all of one shape and device"),
        ([torch.zeros(1, 8, 2, 4)], random_order(1, 3, 8), r"\[1 or 1, 2 or 1, 8\], got \[1, 3, 8\]"),
        ([torch.zeros(1, 8, 2, 4)], random_order(1, 2, 9), r"got \[1, 2, 9\]"),
        ([torch.zeros(1, 8, 2, 4)], torch.zeros(1, 2, 8), "order must be int32, got torch.float32"),
        ([torch.zeros(1, 8, 2, 4)], random_order(1, 2, 8).to("meta"), "order is on meta"),
    ],
)
def test_a_wrong_call_is_refused(tensors, order, message):
    with pytest.raises(ValueError, match=message):
        gather_tokens(tensors, order)


@pytest.mark.parametrize("tokens", [pytest.param(32_760, marks=GPU)])
def test_long_sequences_on_the_gpu_without_a_host_sync(tokens):
    tensors = inputs(1, tokens, 12, 128, torch.bfloat16, device="cuda")
    order = random_order(1, 12, tokens, device="cuda")
    gather_tokens(tensors, order)
    with no_sync():
        gathered = gather_tokens(tensors, order)
        back = scatter_tokens(gathered, order)
    assert torch.equal(gathered[2], naive_permute(tensors[2], order))
    assert all(torch.equal(x, y) for x, y in zip(tensors, back, strict=True))
