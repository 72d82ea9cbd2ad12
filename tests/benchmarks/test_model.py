"""One denoiser call with random weights: built without a second copy, checked, timed dense and sparse."""

import threading
import time

import pytest
import torch

import dittools
from dittools import sparse as sparse_calls
from dittools.benchmarks import costs, speed_only
from dittools.benchmarks import model as bench
from dittools.kernels.block_sparse import dispatch
from dittools.parts import PartTimes, part
from tests.tiny import COMPILES

CPU = torch.device("cpu")
SETTINGS = {"method": "svg", "sparsity": 0.7, "dense_layers": 1, "dense_steps": 0}


@pytest.fixture(scope="module")
def pipe():
    return speed_only.build(speed_only.size_of("wan", "tiny", layers=3), CPU, torch.float32)


@pytest.fixture
def forward(pipe):
    call = speed_only.call_of(pipe, 128, 192, 33, CPU, torch.float32)
    return speed_only.forward_of(pipe, call)


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
    right = dispatch.portable_block_sparse_attention

    def faulty(*args, **call):
        out, lse = right(*args, **call)
        return (out * 1.01 if fault == "wrong" else out * torch.nan), lse

    settings = SETTINGS
    if fault == "stays dense":
        settings = {**SETTINGS, "method": "auto"}
    else:
        monkeypatch.setattr(dispatch, "portable_block_sparse_attention", faulty)
    row = measure(pipe, forward, settings)["sparse"]
    reason = {"wrong": "RMS error", "not finite": "not finite", "stays dense": "too few to gain"}[fault]
    assert reason in row["error"] and row["seconds"] == [] and "median" not in row


@COMPILES
def test_compiled_blocks_are_measured_beside_eager_ones_and_left_eager(pipe, forward):
    torch._dynamo.reset()
    found = measure(pipe, forward, compiled=True, backend="eager")
    assert list(found) == ["dense", "dense compiled", "sparse", "sparse compiled"]
    assert set(found["sparse compiled"]["speedup"]) == {"dense", "dense compiled"}
    assert not any("error" in row for row in found.values())
    assert all(module._compiled_call_impl is None for module in pipe.transformer.modules())
    torch._dynamo.reset()


def test_parts_are_timed_without_changing_anything(pipe, forward):
    with torch.no_grad(), dittools.accelerate(pipe, **SETTINGS) as fast:
        before = forward()
        with PartTimes(CPU) as times:
            after = forward()
        assert {"select", "lists", "attention", "check"} <= times.seconds().keys()
        assert fast.record()["kernels"] == {"portable": 4}
        assert "kernels   portable 4" in fast.summary()
    assert torch.equal(before, after)


@pytest.mark.parametrize("calls", [1, 2, 6])
def test_what_fails_in_one_row_costs_no_other(pipe, forward, calls):
    """Sparse calls run out of memory: the first, one of those of the parts, or one that is timed."""
    left = [calls]
    attend = sparse_calls.attend

    def fails(*args, **how):
        left[0] -= 1
        if left[0] < 0:
            raise torch.OutOfMemoryError("no memory")
        return attend(*args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sparse_calls, "attend", fails)
        found = measure(pipe, forward)
    assert "OutOfMemoryError: no memory" in found["sparse"]["error"] and "median" not in found["sparse"]
    assert found["dense"]["complete"] and len(found["dense"]["seconds"]) == 2


def test_a_call_is_timed_although_its_parts_cannot_be(pipe, forward, monkeypatch):
    def fails(*args):
        raise torch.OutOfMemoryError("no memory for parts")

    monkeypatch.setattr(costs, "measure", fails)
    sparse = measure(pipe, forward)["sparse"]
    assert sparse["complete"] and "no memory for parts" in sparse["no_parts"] and "parts" not in sparse


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
    # Its clusters are made in every call; the order of the other is static.
    assert told["svg2"]["costs"]["order"] > 0 and "order" not in told["draft"]["costs"]


@pytest.fixture
def clock(monkeypatch):
    """Time passes only where a test says so: what it gives makes it pass."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_a_part_within_another_is_taken_out_of_it(clock):
    with PartTimes(CPU) as times, part("select"):
        clock(2)
        with part("order"):
            clock(4)
            with part("permute"):
                clock(1)
    with part("order"):  # nobody collects
        clock(3)
    assert times.seconds() == pytest.approx({"select": 2, "order": 4, "permute": 1})


def test_threads_that_time_at_once_keep_their_parts_apart(clock):
    """The second opens a part within the first's; the first opens one more within that, and closes both before it."""
    steps = {name: threading.Event() for name in ("first opens", "second opens", "first closes")}
    found = {}

    def first():
        with PartTimes(CPU) as times:
            with part("select"):
                steps["first opens"].set()
                steps["second opens"].wait(60)
                with part("permute"):
                    clock(1)
            steps["first closes"].set()
        found["first"] = times.seconds()

    def second():
        steps["first opens"].wait(60)
        with PartTimes(CPU) as times:
            with part("order"):
                steps["second opens"].set()
                steps["first closes"].wait(60)
                clock(2)
            with part("attention"):
                clock(4)
        found["second"] = times.seconds()

    threads = [threading.Thread(target=run) for run in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {"first": {"select": 0, "permute": 1}, "second": {"order": 3, "attention": 4}}


def test_an_order_is_told_from_the_attention_that_walks_it(pipe, forward, monkeypatch, clock):
    """Attention takes 1 s, and 3 s in an order."""
    right = dispatch.portable_block_sparse_attention

    def slow(*args, order=None, **call):
        clock(1 if order is None else 3)
        return right(*args, order=order, **call)

    monkeypatch.setattr(dispatch, "portable_block_sparse_attention", slow)
    with torch.no_grad(), dittools.accelerate(pipe, **{**SETTINGS, "method": "draft"}) as fast:
        forward()
        found = costs.measure(fast.runtime, forward, CPU)
    assert found["parts"]["attention"] == pytest.approx(2) and found["parts"]["permute"] == pytest.approx(4)  # 2 layers
    assert found["costs"] == {"select": 0, "lists": 0, "permute": pytest.approx(2), "all": pytest.approx(2)}
