"""A measured call split over GPUs: volumes by the formulas, heads and tokens that do not divide, and where it pays."""

import dataclasses
import json
import math

import pytest

from dittools.profiles.calls import MeasuredCall, measured_calls
from dittools.scaling import Layout, Links, efficiency, exchanged_bytes, fastest, numbers_of_gpus, split, work_of

CALL = MeasuredCall(
    model="wan", size="14b", card="a card", layers=40, heads=40, head_dim=128, frames=81, height=720, width=1280,
    tokens=75_600, branches=2, method="svg", sparsity=0.8, dense_layers=0, dense_seconds=11.0, sparse_seconds=5.0,
    dense_attention=8.0, sparse_attention=2.0, kernel=1.6, weights_gb=28.0, peak_gb=36.0,
)  # fmt: skip


def work(tokens=75_600, sparsity=0.8, **changes):
    return work_of(dataclasses.replace(CALL, **changes), tokens, sparsity, 0)


def test_ulysses_sends_four_tensors_of_which_a_share_stays():
    sent, ring = exchanged_bytes(CALL, 75_600, Layout(ulysses=8))
    assert sent == 4 * 75_600 * 5120 * 2 / 8 * 7 / 8 and ring == 0
    assert sent == pytest.approx(0.34e9, rel=0.01)


def test_ring_sends_keys_and_values_of_all_other_ranks():
    sent, ring = exchanged_bytes(CALL, 75_600, Layout(ring=4))
    assert sent == 0 and ring == 2 * 75_600 * 5120 * 2 * 3 / 4
    both = exchanged_bytes(CALL, 75_600, Layout(ulysses=4, ring=2))
    assert both == (4 * 75_600 * 5120 * 2 / 8 * 3 / 4, 2 * 75_600 * 5120 * 2 / 4 / 2)


def test_one_gpu_is_the_measured_call_and_exchanges_nothing():
    one = split(work(), Layout(), Links())
    assert one.attention + one.rest == pytest.approx(5.0) and one.exchange == 0
    assert one.step == pytest.approx(10.0) and one.memory_gb == 36.0 and str(one.layout) == "-"


def test_what_divides_is_shared_evenly_and_the_weights_are_on_every_gpu():
    eight = split(work(), Layout(ulysses=8), Links())
    assert (eight.attention, eight.rest, eight.heads) == (pytest.approx(2 / 8), pytest.approx(3 / 8), 5)
    assert eight.exchange == pytest.approx(40 * 0.33868e9 / 300e9, rel=1e-3)
    assert eight.exchanged_gb[0] == pytest.approx(40 * 0.33868, rel=1e-3)
    buffers = 4 * 75_600 / 8 * 5120 * 2 / 1e9
    assert eight.memory_gb == pytest.approx(28 + 8 / 8 + buffers)


def test_guidance_branches_side_by_side_exchange_nothing():
    two = split(work(), Layout(cfg=2), Links())
    assert two.exchange == 0 and two.step == pytest.approx(5.0) and two.memory_gb == 36.0


def test_heads_that_do_not_divide_are_paid_by_the_busiest_gpu():
    sixteen = split(work(heads=24), Layout(ulysses=16), Links(gpus=16))
    assert sixteen.heads == 2 and sixteen.attention == pytest.approx(2.0 * 2 / 24)


def test_tokens_that_do_not_divide_are_filled_up():
    uneven = split(work(tokens=75_601), Layout(ulysses=8), Links())
    assert uneven.attention == pytest.approx(2 / 8 * (75_601 / 75_600) ** 2 * 8 * 9_451 / 75_601)


def test_the_exchange_between_machines_goes_by_the_slower_link():
    near, far = (split(work(), Layout(ulysses=8), Links(gpus=gpus)).exchange for gpus in (8, 4))
    volume = 40 * exchanged_bytes(CALL, 75_600, Layout(ulysses=8))[0] / 1e9
    assert near == pytest.approx(volume / 300) and far == pytest.approx(volume * (3 / 7 / 300 + 4 / 7 / 50))
    ring = 40 * exchanged_bytes(CALL, 75_600, Layout(ring=2))[1] / 1e9
    assert split(work(), Layout(ring=2), Links(gpus=1)).exchange == pytest.approx(ring / 50)
    assert split(work(), Layout(ring=2), Links(gpus=2)).exchange == pytest.approx(ring / 300)


def test_attention_goes_by_pairs_and_the_rest_by_tokens():
    twice = work(tokens=151_200)
    assert twice.attention == pytest.approx(8.0) and twice.rest == pytest.approx(6.0)
    assert work(sparsity=0.9).attention == pytest.approx(0.4 + 0.8) and work(sparsity=0.9).rest == pytest.approx(3.0)
    assert work(sparsity=None).attention == 8.0 and work(sparsity=None).rest == 3.0


def test_dense_layers_are_as_slow_as_those_of_a_dense_call():
    some = work_of(CALL, 75_600, 0.8, dense_layers=10)
    assert some.attention == pytest.approx(10 * 8 / 40 + 30 * 2 / 40)
    assert work_of(CALL, 75_600, 0.8, dense_layers=99).attention == pytest.approx(8.0)
    first = dataclasses.replace(CALL, dense_layers=4, sparse_attention=4 * 0.2 + 36 * 0.05, kernel=36 * 0.04)
    assert work_of(first, 75_600, 0.8, 4).attention == pytest.approx(first.sparse_attention)
    assert work_of(first, 75_600, 0.8, 0).attention == pytest.approx(40 * 0.05)


def test_the_fastest_layout_has_no_gpu_without_a_head_and_takes_guidance_first():
    for gpus in (1, 2, 8, 24, 48, 64):
        found = fastest(work(), gpus, Links())
        assert found.layout.gpus == gpus and found.layout.ulysses <= 40
    assert fastest(work(), 2, Links()).layout == Layout(cfg=2)
    assert fastest(work(branches=1), 2, Links()).layout == Layout(ulysses=2)
    assert fastest(work(branches=1, heads=24), 64, Links()).layout.ring > 1


def test_numbers_of_gpus_double_to_the_most():
    assert numbers_of_gpus(1) == [1] and numbers_of_gpus(8) == [1, 2, 4, 8] and numbers_of_gpus(12) == [1, 2, 4, 8, 12]


def test_efficiency_is_one_where_nothing_is_lost():
    one, two = split(work(), Layout(), Links()), split(work(), Layout(cfg=2), Links())
    assert efficiency(one, two) == pytest.approx(1)
    assert efficiency(one, split(work(), Layout(ulysses=8), Links())) < 1


def test_the_calls_that_ship_are_those_of_the_measurements():
    from dittools.profiles import calls
    from dittools.tools import measured_calls as tool

    assert json.loads(calls.PATH.read_text()) == json.loads(json.dumps(tool.made()))


@pytest.mark.parametrize("call", measured_calls(), ids=lambda call: f"{call.model}-{call.size}")
def test_parts_of_a_measured_call_are_parts_of_it(call):
    assert 0 < call.kernel < call.sparse_attention < call.sparse_seconds < call.dense_seconds
    assert call.sparse_attention < call.dense_attention < call.dense_seconds
    assert 0 < call.weights_gb < call.peak_gb
    rests = call.dense_seconds - call.dense_attention, call.sparse_seconds - call.sparse_attention
    assert math.isclose(*rests, rel_tol=0.1), "all but attention takes the same time in both"


def test_attention_found_from_differences_is_what_the_dense_kernel_takes_and_the_copies_around_it():
    from dittools.tools.measured_calls import MEASURED

    compared = 0
    for call in measured_calls():
        for path in MEASURED.glob("model_*.json"):
            row = json.loads(path.read_text())["rows"][0]
            found = row["dense_attention_ms"].get(row["dense_attention"])
            if (row["job"]["model"], row["job"]["layers"]) == (call.model, call.layers) and found:
                assert 0.97 < call.dense_attention / (call.layers * found / 1000) < 1.2
                compared += 1
    assert compared >= 4
