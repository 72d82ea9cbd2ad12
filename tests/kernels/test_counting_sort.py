import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from places import GPU, INTERPRETED, everywhere, no_sync

from dittools.kernels import sort_by_label
from dittools.kernels.counting_sort.naive import naive_sort_by_label

MANY = 5 if INTERPRETED else 20


def random_labels(lanes, tokens, count, seed=0):
    return torch.randint(count, (lanes, tokens), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def check(labels, count, place):
    implementation, device = place
    order, offsets = sort_by_label(labels.to(device), count, implementation=implementation)
    assert order.dtype == offsets.dtype == torch.int32
    want_order, want_offsets = naive_sort_by_label(labels, count)
    assert torch.equal(order.cpu(), want_order) and torch.equal(offsets.cpu(), want_offsets)


@everywhere
@settings(
    max_examples=5 if INTERPRETED else 20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lanes=st.integers(1, 2), tokens=st.integers(1, 90), count=st.integers(1, 70), seed=st.integers(0, 99))
def test_the_order_is_stable_and_the_offsets_are_exact(place, lanes, tokens, count, seed):
    check(random_labels(lanes, tokens, count, seed), count, place)


@everywhere
def test_labels_that_nobody_has_take_no_place(place):
    labels = torch.tensor([[5, 2, 5, 5, 2], [0, 7, 7, 0, 7]], dtype=torch.int32)
    check(labels, 8, place)


@everywhere
def test_one_label_leaves_the_order_alone(place):
    check(torch.zeros(1, 70, dtype=torch.int32), 1, place)


@everywhere
@pytest.mark.parametrize("dtype", [torch.int64, torch.int16], ids=str)
def test_strided_labels_of_any_integer_type(place, dtype):
    check(random_labels(40, 2, 5).to(dtype).T, 5, place)


def test_more_labels_than_sixteen_bits_hold():
    labels = random_labels(1, 300, 40_000)
    order, offsets = sort_by_label(labels, 40_000)
    assert torch.equal(order.long(), labels.sort(stable=True).indices)
    assert torch.equal(offsets.diff(), torch.bincount(labels[0], minlength=40_000)[None].int())


@pytest.mark.parametrize(
    ("labels", "count", "message"),
    [
        (torch.zeros(3, dtype=torch.int32), 2, r"labels must be int \[N, S\], got torch.int32 \[3\]"),
        (torch.zeros(1, 3), 2, "got torch.float32"),
        (torch.zeros(1, 3, dtype=torch.int32), 0, "count must be at least 1, got 0"),
    ],
)
def test_a_wrong_call_is_refused(labels, count, message):
    with pytest.raises(ValueError, match=message):
        sort_by_label(labels, count)


def test_asking_for_what_cannot_run_says_why(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    labels = torch.zeros(1, 3, dtype=torch.int32)
    with pytest.raises(ValueError, match="'triton' cannot run this call: "):
        sort_by_label(labels, 2, implementation="triton")
    with pytest.raises(ValueError, match="unknown implementation 'fast': use triton, portable, or None"):
        sort_by_label(labels, 2, implementation="fast")


@pytest.mark.parametrize("place", [pytest.param(("triton", "cuda"), marks=GPU)])
def test_long_sequences_on_the_gpu_without_a_host_sync(place):
    labels = random_labels(6, 75_600, 1000).cuda()
    sort_by_label(labels, 1000)
    with no_sync():
        order, offsets = sort_by_label(labels, 1000)
    assert torch.equal(order.long(), labels.sort(dim=-1, stable=True).indices)
    assert torch.equal(offsets[:, -1].cpu(), torch.full((6,), 75_600, dtype=torch.int32))
