"""Means of runs of positions: by the oracle, on every path."""

import pytest
import torch
from cases import inputs, random_order
from places import GPU, INTERPRETED, everywhere, no_sync

from dittools.kernels.segment_mean.dispatch import segment_means
from dittools.kernels.segment_mean.naive import naive_segment_means

if INTERPRETED:
    from dittools.kernels.segment_mean import triton as run_means_triton

    run_means_triton.CHUNK, run_means_triton.SEARCH = 64, 8  # long runs are short ones here


def offsets_of(*rows, lanes=(1, 1)):
    """Where runs begin and end, the same lanes over and over."""
    ends = torch.tensor(rows, dtype=torch.int32)
    return ends.repeat(lanes[0] * lanes[1], 1)[: lanes[0] * lanes[1]].unflatten(0, lanes).contiguous()


def check(place, tensors, order, offsets):
    implementation, device = place
    there = [x.to(device) for x in tensors]
    order_there = None if order is None else order.to(device)
    found = segment_means(there, order_there, offsets.to(device), implementation=implementation)
    assert len(found) == len(tensors)
    for x, means in zip(tensors, found, strict=True):
        assert means.dtype == torch.float32
        torch.testing.assert_close(means.cpu(), naive_segment_means(x, order, offsets), atol=2e-6, rtol=1e-5)
    again = segment_means(there[0], order_there, offsets.to(device), implementation=implementation)
    torch.testing.assert_close(again, found[0], atol=1e-6, rtol=1e-5)


EVEN = (0, 128, 256, 300)
RAGGED = (0, 0, 7, 7, 71, 200, 201, 300)
EDGES = (0, 64, 192, 192, 256, 256, 300)


@everywhere
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("runs", [EVEN, RAGGED, EDGES, (0, 300), (0, 0, 300, 300)], ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_matches_the_oracle(place, dtype, runs, ordered):
    order = random_order(1, 2, 300) if ordered else None
    check(place, inputs(1, 300, 2, 64, dtype), order, offsets_of(runs))


@everywhere
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("tokens", "dim"), [(1, 5), (63, 96), (257, 128)])
def test_one_to_three_tensors_of_any_length_and_dim(place, count, tokens, dim):
    runs = offsets_of((0, 0, tokens // 2, tokens))
    check(place, inputs(2, tokens, 2, dim)[:count], random_order(2, 2, tokens).long(), runs)


@everywhere
@pytest.mark.parametrize("lanes", [(1, 1), (1, 3), (2, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("shared", ["order", "offsets", "neither"])
def test_orders_and_offsets_are_shared_or_of_a_batch_and_a_head(place, lanes, shared):
    rows = [(0, i, 5 + 20 * i, 200) for i in range(6)]
    offsets = offsets_of(*rows, lanes=(1, 1) if shared == "offsets" else lanes)
    order = random_order(*((1, 1) if shared == "order" else lanes), 200)
    check(place, inputs(2, 200, 3, 16), order, offsets)


@everywhere
def test_runs_need_not_cover_all_positions(place):
    x = inputs(1, 300, 2, 32)
    check(place, x, random_order(1, 2, 300), offsets_of((30, 31, 140, 290)))
    check(place, x, None, offsets_of((70, 280)))


@everywhere
def test_any_strides(place):
    q, k, v = inputs(2, 150, 2, 16)
    packed = torch.stack((q, k, v), 2).unbind(2)
    heads_first = k.transpose(1, 2).contiguous().transpose(1, 2)
    dim_first = v.transpose(1, 3).contiguous().transpose(1, 3)
    order, offsets = random_order(1, 2, 150), offsets_of((0, 40, 150))
    check(place, packed, order, offsets)
    check(place, (q, heads_first, dim_first), torch.stack((order, order), -1)[..., 0], offsets)
    check(place, (q,), None, torch.stack((offsets, offsets), -1)[..., 0])


@pytest.mark.parametrize("tensors", [[torch.zeros(1, 8, 2, 4)] * 4, []], ids=len)
def test_too_many_or_no_tensors_are_refused(tensors):
    with pytest.raises(ValueError, match=f"takes 1 to 3 tensors, got {len(tensors)}"):
        segment_means(tensors, None, offsets_of((0, 8)))


@pytest.mark.parametrize(
    ("tensors", "order", "offsets", "message"),
    [
        ([torch.zeros(8, 2, 4)], None, offsets_of((0, 8)), r"must be \[B, S, H, D\].*\[8, 2, 4\]"),
        ([torch.zeros(1, 8, 2, 4), torch.zeros(1, 8, 2, 5)], None, offsets_of((0, 8)), "all of one shape"),
        (torch.zeros(1, 8, 2, 4), None, offsets_of((0, 8)).long(), "int32 .* got torch.int64"),
        (torch.zeros(1, 8, 2, 4), None, offsets_of((0,)), r"int32 .* \[1, 1, 1\]"),
        (torch.zeros(1, 8, 2, 4), None, offsets_of((0, 8), lanes=(1, 3)), r"offsets must be \[1 or 1, 2 or 1"),
        (torch.zeros(1, 8, 2, 4), random_order(1, 2, 9), offsets_of((0, 8)), r"order must be .*, 8\], got \[1, 2, 9\]"),
        (torch.zeros(1, 8, 2, 4), torch.zeros(1, 2, 8), offsets_of((0, 8)), "order must be int32, got torch.float32"),
        (torch.zeros(1, 8, 2, 4), random_order(1, 2, 8).to("meta"), offsets_of((0, 8)), "order is on meta"),
    ],
)
def test_a_wrong_call_is_refused(tensors, order, offsets, message):
    with pytest.raises(ValueError, match=message):
        segment_means(tensors, order, offsets)


@pytest.mark.parametrize("tokens", [pytest.param(32_760, marks=GPU)])
def test_long_sequences_on_the_gpu_without_a_host_sync(tokens):
    _, k, v = inputs(1, tokens, 12, 128, torch.bfloat16, device="cuda")
    order = random_order(1, 12, tokens, device="cuda")
    offsets = offsets_of((0, 100, 100, 30_000, tokens)).cuda()
    with no_sync():
        found = segment_means((k, v), order, offsets)
    torch.testing.assert_close(found[1], naive_segment_means(v, order, offsets), atol=1e-5, rtol=1e-4)
