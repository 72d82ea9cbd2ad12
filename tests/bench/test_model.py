"""One denoiser call with random weights: built without a second copy, checked, timed dense and sparse."""

import time

import pytest
import torch

import dittools
from dittools import sparse as sparse_calls
from dittools.bench import costs
from dittools.bench import model as bench
from dittools.kernels import portable
from dittools.observer import PartTimes
from dittools.parts import inner_part
from dittools.pipelines import speed_only

CPU = torch.device("cpu")
SETTINGS = {"method": "svg", "sparsity": 0.7, "dense_layers": 1, "dense_steps": 0}


@pytest.fixture(scope="module")
def pipe():
    return speed_only.build(speed_only.size_of("wan", "tiny", layers=3), CPU, torch.float32)


@pytest.fixture
def forward(pipe):
    call = speed_only.call_of(pipe, 128, 192, 33, CPU, torch.float32)
    return lambda: pipe.transformer(**call)[0]


def measure(pipe, forward, settings=SETTINGS, compiled=False, **options):
    found = {}

    def told(kind, row):
        found[kind] = row

    cases, blocks = bench.cases_of(settings, compiled), bench.Blocks(pipe.transformer, **options)
    bench.measure(pipe, forward, cases, device=CPU, repeats=2, told=told, blocks=blocks)
    return found


def test_dense_and_sparse_calls_are_timed_with_what_ran(pipe, forward):
    found = measure(pipe, forward)
    assert list(found) == ["dense", "sparse"]
    sparse = found["sparse"]
    assert len(sparse["seconds"]) == 2 and sparse["complete"]
    assert sparse["speedup"] == {"dense": pytest.approx(found["dense"]["median"] / sparse["median"])}
    assert sparse["skipped_sparse_calls"] == pytest.approx(0.7, abs=0.02)
    assert sparse["skipped_all_calls"] == pytest.approx(0.7 * 2 / 3, abs=0.02)
    assert set(sparse["kernels"]) == {"portable"}
    assert {"select", "order", "lists", "attention", "check"} <= set(sparse["parts"])
    assert 0 < sum(sparse["parts"].values()) < sparse["parts_of_seconds"]
    shares = {
        n: x / sparse["parts"]["attention"] for n, x in sparse["parts"].items() if n not in ("attention", "check")
    }
    assert sparse["costs"] == pytest.approx({**shares, "all": sum(shares.values())})


@pytest.mark.parametrize("fault", ["wrong", "not finite", "stays dense"])
def test_no_speed_is_told_of_a_wrong_call(pipe, forward, monkeypatch, fault):
    right = portable.portable_block_sparse_attention

    def faulty(*args, **call):
        out, lse = right(*args, **call)
        return (out * 1.01 if fault == "wrong" else out * torch.nan), lse

    settings = SETTINGS
    if fault == "stays dense":
        settings = {**SETTINGS, "method": "auto"}
    else:
        monkeypatch.setattr(portable, "portable_block_sparse_attention", faulty)
    row = measure(pipe, forward, settings)["sparse"]
    reason = {"wrong": "RMS error", "not finite": "not finite", "stays dense": "too few to gain"}[fault]
    assert reason in row["error"] and row["seconds"] == [] and "median" not in row


def test_compiled_blocks_are_measured_beside_eager_ones_and_left_eager(pipe, forward):
    torch._dynamo.reset()
    found = measure(pipe, forward, compiled=True, backend="eager")
    assert list(found) == ["dense", "dense compiled", "sparse", "sparse compiled"]
    assert set(found["sparse compiled"]["speedup"]) == {"dense", "dense compiled"}
    assert not any("error" in row for row in found.values())
    assert all(module._compiled_call_impl is None for module in pipe.transformer.modules())
    torch._dynamo.reset()


def test_an_observer_sees_the_parts_and_changes_nothing(pipe, forward):
    with torch.no_grad(), dittools.accelerate(pipe, **SETTINGS) as fast:
        before = forward()
        fast.runtime.observer = PartTimes(CPU)
        after = forward()
        assert fast.record()["kernels"] == {"portable": 4}
        assert "kernels   portable 4" in fast.summary()
    assert torch.equal(before, after)


@pytest.mark.parametrize("calls", [1, 2, 6])
def test_what_fails_in_one_row_costs_no_other(pipe, forward, calls):
    """Sparse calls run out of memory: the first, one of those of the parts, or one that is timed."""
    left = [calls]
    chosen = sparse_calls.choose

    def fails(*args, **how):
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("no memory")
        return chosen(*args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_calls, "choose", fails)
        found = measure(pipe, forward)
    assert "OutOfMemoryError: no memory" in found["sparse"]["error"] and "median" not in found["sparse"]
    assert found["dense"]["complete"] and len(found["dense"]["seconds"]) == 2


def test_methods_share_one_model_and_its_dense_calls(pipe, forward):
    told = {}
    dense = {"dense": 1000.0}
    for method in ("draft", "svg2"):
        case = bench.Case("sparse", {**SETTINGS, "method": method}, method)
        dense = bench.measure(
            pipe, forward, [case], device=CPU, repeats=1, told=lambda name, row: told.update({name: row}), dense=dense
        )
    assert dense == {"dense": 1000.0} and list(told) == ["draft", "svg2"]
    for row in told.values():
        assert row["speedup"] == {"dense": pytest.approx(1000 / row["median"])} and row["complete"]
    # Its clusters are made in every call; the other's order is static, and copies in it are made for its selection.
    assert told["svg2"]["costs"]["order"] > 0 and "order" not in told["draft"]["costs"]
    assert told["draft"]["parts"]["permute"] > 0


def test_a_part_within_another_is_taken_out_of_it():
    times = PartTimes(CPU)
    with times.part("select"):
        time.sleep(0.02)
        with inner_part("order"):
            time.sleep(0.04)
            with inner_part("permute"):
                time.sleep(0.01)
    with inner_part("order"):  # inside of no part
        time.sleep(0.03)
    found = times.seconds()
    assert found == pytest.approx({"select": 0.02, "order": 0.04, "permute": 0.01}, rel=0.4)


def test_an_order_is_told_from_the_attention_that_walks_it(pipe, forward, monkeypatch):
    """Attention in an order takes 20 ms longer here, and that is what the permute comes to."""
    right = portable.portable_block_sparse_attention

    def slow(*args, order=None, **call):
        time.sleep(0.02 if order is not None else 0)
        return right(*args, order=order, **call)

    monkeypatch.setattr(portable, "portable_block_sparse_attention", slow)
    with torch.no_grad(), dittools.accelerate(pipe, **{**SETTINGS, "method": "draft"}) as fast:
        forward()
        found = costs.measure(fast.runtime, forward, CPU)
    assert 0.03 < found["parts"]["permute"] < 0.1  # two sparse layers
