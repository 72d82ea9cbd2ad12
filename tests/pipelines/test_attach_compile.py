"""Compiled blocks: one graph for all layers, steps and branches, and the result of the eager pipeline."""

import gc

import pytest
import torch
from torch._dynamo.utils import counters

import dittools
from dittools.cli import flag_checks
from dittools.pipelines import backend, seats
from dittools.pipelines.compiler import why_not_compiled
from dittools.pipelines.errors import BadInput
from tests.tiny import COMPILES, draw, tiny_pipeline


@pytest.fixture(autouse=True)
def fresh_compiler():
    gc.collect()  # a compiled block looks at the table of backends: no other test's pipeline may be in it
    backend._sweep()
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return counters["stats"]["unique_graphs"]


@COMPILES
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("compile_first", [True, False])
def test_repeated_blocks_compile_once_for_dense_and_sparse_steps_alike(backend, compile_first):
    pipe = tiny_pipeline()
    with dittools.accelerate(pipe, method="svg", sparsity=0.7, dense_steps=1):
        eager = draw(pipe)
    if compile_first:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    fast = dittools.accelerate(pipe, method="svg", sparsity=0.7, dense_steps=1)
    if not compile_first:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend=backend)
    out = draw(pipe)
    assert graphs() == 1
    assert fast.record()["calls"] == {"dense": 12, "sparse": 12, "reused": 0, "expected": 24}
    torch.testing.assert_close(out, eager, rtol=1e-3, atol=1e-4)


@COMPILES
def test_other_settings_on_the_same_pipeline_use_the_graph_again_and_restore_is_exact():
    pipe = tiny_pipeline()
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    before = draw(pipe)
    for sparsity in (0.5, 0.6, 0.7, 0.8):
        fast = dittools.accelerate(pipe, method="svg", sparsity=sparsity)
        draw(pipe)
        assert fast.record()["sparsity"]["sparse_calls"] == pytest.approx(sparsity, abs=0.02)
    assert graphs() == 2  # the untouched block, and ours
    fast.restore()
    assert torch.equal(draw(pipe), before)
    assert graphs() == 2


@COMPILES
def test_a_transformer_compiled_whole_runs_with_graph_breaks():
    pipe = tiny_pipeline()
    with dittools.accelerate(pipe, method="svg", sparsity=0.7, dense_steps=1):
        eager = draw(pipe)
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    fast = dittools.accelerate(pipe, method="svg", sparsity=0.7, dense_steps=1)
    torch.testing.assert_close(draw(pipe), eager, rtol=1e-3, atol=1e-4)
    assert fast.record()["calls"] == {"dense": 12, "sparse": 12, "reused": 0, "expected": 24}


@pytest.mark.parametrize("compile_first", [True, False])
@pytest.mark.parametrize(
    "cache, options",
    [
        ("taylorseer", {"interval": 3, "start": 0, "warmup_steps": 1}),
        ("first_block", {"threshold": 1e9, "max_consecutive_skips": 2}),
        ("pab", {"interval": 2, "low": 0, "high": 2000}),
    ],
)
def test_a_cache_adds_no_graph_to_repeated_blocks(cache, options, compile_first):
    pipe = tiny_pipeline()
    asked = {"method": "svg", "sparsity": 0.7, "dense_steps": 1, "cache": cache, "cache_options": options}
    with dittools.accelerate(pipe, **asked) as fast:
        eager = draw(pipe, steps=6)
    reused = fast.record()["calls"]["reused"]
    if compile_first:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    fast = dittools.accelerate(pipe, **asked)
    if not compile_first:
        pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    out = draw(pipe, steps=6)
    assert graphs() == 1
    assert fast.record()["calls"]["reused"] == reused > 0
    torch.testing.assert_close(out, eager, rtol=1e-3, atol=1e-4)
    fast.restore()
    draw(pipe, steps=1)
    assert pipe.transformer.blocks[0]._compiled_call_impl is not None  # the compiled block is still compiled


@pytest.mark.parametrize("how", ["wrapped", "in place, first", "in place, later"])
def test_a_cache_on_a_transformer_compiled_whole(how):
    pipe = tiny_pipeline()
    asked = {"method": "svg", "sparsity": 0.7, "dense_steps": 1, "cache": "taylorseer"}
    asked["cache_options"] = {"interval": 3, "start": 0, "warmup_steps": 1}
    with dittools.accelerate(pipe, **asked) as fast:
        eager = draw(pipe, steps=6)
    reused = fast.record()["calls"]["reused"]
    if how == "in place, later":
        fast = dittools.accelerate(pipe, **asked)
    if how == "wrapped":
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    else:
        pipe.transformer.compile(backend="eager")
    if how != "in place, later":
        fast = dittools.accelerate(pipe, **asked)
    if how == "in place, later":
        draw(pipe, steps=1)  # the first call shows that something took the place; from then on ours is in front
    out = draw(pipe, steps=6)
    assert fast.record()["calls"]["reused"] == reused > 0
    torch.testing.assert_close(out, eager, rtol=1e-3, atol=1e-4)


def test_blocks_that_this_torch_cannot_compile_run_dense_and_say_why(monkeypatch):
    """What torch 2.6 does: it stops at the name of a backend, so compiled calls name none."""
    why = why_not_compiled() or "this compiler does not take names"
    monkeypatch.setattr(seats, "why_not_compiled", lambda: why)
    seats._led_class.cache_clear()
    try:
        pipe = tiny_pipeline()
        dense = draw(pipe, steps=2)
        pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
        with dittools.accelerate(pipe, method="draft", sparsity=0.5, dense_steps=0, dense_layers=0) as fast:
            out, record = draw(pipe, steps=2), fast.record()
    finally:
        seats._led_class.cache_clear()
    assert torch.equal(out, dense)
    assert [one["reason"] for one in record["fallbacks"]] == [why]
    assert record["calls"]["sparse"] == 0 < record["calls"]["dense"]


def test_compile_is_refused_at_once_where_torch_cannot(monkeypatch):
    monkeypatch.setattr(flag_checks, "why_not_compiled", lambda: "torch 2.6.0 cannot")
    with pytest.raises(BadInput, match=r"--compile: torch 2\.6\.0 cannot"):
        flag_checks.check_compile(True)
    flag_checks.check_compile(None)
    flag_checks.check_compile(False)
