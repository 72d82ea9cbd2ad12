"""The runtime with a method of our own: calls that stay dense, and what a method carries from step to step."""

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F

import dittools.sparse as home
from dittools import methods, summary
from dittools.call_info import CallInfo, Timing
from dittools.config import Config
from dittools.kernels import first_use
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods import Method, Plan, StayDense
from dittools.runtime import Layer, Runtime
from dittools.tokens import TokenGrid

GRID = TokenGrid(5, 8, 10)
BRANCHES = ("cond", "uncond")


@dataclass(frozen=True)
class Probe(Method):
    """Keeps every second block; says what it was carried; stays dense in layer 1 when asked to."""

    name: ClassVar[str] = "probe"
    summary: ClassVar[str] = "for this test"
    seen: ClassVar[list] = []
    stay: ClassVar[tuple] = ()

    def asked(self, call):
        return None  # it keeps what it keeps

    def plan(self, q, k, v, call):
        self.seen.append((call.layer, call.branch, call.step, dict(call.branch_state)))
        call.branch_state["calls"] = call.branch_state.get("calls", 0) + 1
        call.branch_state["first"] = call.branch_state.get("first", (call.layer, call.branch, call.step))
        if call.layer in self.stay:
            return StayDense("the probe had enough")
        partition = Partition(q.shape[1], call.block_size)
        keep = torch.eye(partition.count, dtype=torch.bool)[None, None]
        return Plan(None, BlockMask(keep, partition, partition))


@pytest.fixture(autouse=True)
def probe(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "probe", Probe)
    monkeypatch.setattr(Probe, "seen", [])
    monkeypatch.setattr(Probe, "stay", ())
    return Probe


def dense(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


class Model:
    """Stands for a pipeline of three attention layers: asks the runtime as `pipelines/` does, and keeps outputs."""

    def __init__(self, **settings):
        settings = {"method": "probe", "dense_steps": 0, "dense_layers": 0, "share_branches": False} | settings
        self.runtime = Runtime(Config(**settings), [Layer(f"blocks.{i}", i) for i in range(3)])
        made = torch.Generator().manual_seed(0)
        self.qkv = [torch.randn(1, GRID.tokens, 2, 64, generator=made) for _ in range(3)]

    def run(self, steps=4, grid=GRID, only=BRANCHES):
        """One pipeline call: every step of every branch."""
        timesteps = torch.linspace(1000, 100, steps)
        for t in timesteps:
            for branch in only:
                self.forward(t, timesteps, branch, grid)
        return self.runtime.run

    def forward(self, t, timesteps, branch, grid=GRID):
        timing = Timing(t, timesteps, branch)
        self.runtime.begin_call(CallInfo(timing, grid, torch.device("cpu"), torch.float32))
        while True:
            self.out = [self.runtime.attend(i, *self.qkv, dense=lambda: dense(*self.qkv)) for i in range(3)]
            if not self.runtime.end_call():
                return


def test_a_method_that_stays_dense_gives_the_dense_result_and_is_counted_with_its_reason(probe):
    probe.stay = (1,)
    model = Model()
    run = model.run()
    assert torch.equal(model.out[1], dense(*model.qkv))
    assert not torch.allclose(model.out[0], model.out[1], atol=0.1)
    assert run.fallbacks == Counter({"the probe had enough": 8})
    assert [sum(c.density is None for c in run.calls if c.layer == layer) for layer in range(3)] == [0, 8, 0]
    # Where the reason goes: the record that the user reads.
    assert run.skipped([c for c in run.calls if c.layer == 1]) == 0


def test_a_call_that_stays_dense_is_asked_again_in_the_next_step_even_with_refresh(probe):
    probe.stay = (1,)
    Model(refresh=4).run()
    assert Counter(layer for layer, *_ in probe.seen) == {0: 2, 1: 8, 2: 2}


def test_state_is_kept_across_steps_one_for_each_layer_and_branch(probe):
    Model().run()
    assert len(probe.seen) == 4 * 2 * 3
    for layer, branch, step, state in probe.seen:
        if step == 0:
            assert state == {}
        else:
            assert state == {"calls": step, "first": (layer, branch, 0)}


def test_state_outlives_a_call_that_stayed_dense(probe):
    probe.stay = (0, 1, 2)
    Model().run()
    assert [state.get("calls", 0) for layer, branch, _, state in probe.seen if (layer, branch) == (1, "cond")] == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("again", ["the same", "another grid"])
def test_a_new_run_starts_without_state(probe, again):
    model = Model()
    model.run()
    probe.seen.clear()
    if again == "another grid":
        other = TokenGrid(4, 10, 10)
        assert other.tokens == GRID.tokens
        model.run(grid=other)
    else:
        model.run()
    assert [state for _, _, step, state in probe.seen if step == 0] == [{}] * 6


def test_a_forward_redone_after_a_non_finite_result_starts_its_branch_without_state(probe, monkeypatch):
    attend, bad = home.attend, []

    def poisoned(*args, **options):
        out, lse = attend(*args, **options)
        layer, branch, step, _ = probe.seen[-1]
        if (layer, branch, step) == (1, "cond", 2) and not bad:
            bad.append(step)
            out = torch.full_like(out, torch.nan)
        return out, lse

    monkeypatch.setattr(home, "attend", poisoned)
    run = Model().run()
    assert bad and run.fallbacks == Counter({"non-finite result": 2})
    mine = [(layer, step, state.get("calls", 0)) for layer, branch, step, state in probe.seen if branch == "cond"]
    # Step 2 twice: what the first try wrote is gone, and layer 1, dense in this step, is asked again in step 3.
    assert mine == [
        *((layer, step, step) for step in (0, 1, 2) for layer in range(3)),
        *((layer, 2, 0) for layer in (0, 2)),
        *((layer, 3, calls) for layer, calls in ((0, 1), (1, 0), (2, 1))),
    ]
    other = [state.get("calls", 0) for layer, branch, _, state in probe.seen if (layer, branch) == (0, "uncond")]
    assert other == [0, 1, 2, 3]


@pytest.mark.parametrize("dense_steps", [0, 2])
def test_the_branches_of_a_step_use_the_plan_of_the_first(probe, dense_steps):
    run = Model(share_branches=True, dense_steps=dense_steps).run()
    assert [seen[:3] for seen in probe.seen] == [(i, "cond", s) for s in range(dense_steps, 4) for i in range(3)]
    assert run.plans_shared == 3 * (4 - dense_steps) and run.plans_reused == 0
    assert len({id(call.density) for call in run.calls if call.density is not None}) == len(probe.seen)


def test_a_shared_plan_is_kept_for_as_many_steps_as_any(probe):
    Model(share_branches=True, refresh=2).run()
    assert [seen[1:3] for seen in probe.seen[::3]] == [("cond", 0), ("cond", 2)]


def test_without_a_second_branch_nothing_is_kept_for_it(probe):
    run = Model(share_branches=True).run(only=["cond"])
    assert len(probe.seen) == 4 * 3 and run.plans_shared == 0 and not run.plans


def test_a_shared_plan_made_in_a_forward_that_is_run_again_is_made_again(probe, monkeypatch):
    attend, bad = home.attend, []

    def poisoned(q, k, v, *args, **kwargs):
        out, lse = attend(q, k, v, *args, **kwargs)
        bad.append(1)
        return (out * float("nan") if len(bad) == 7 else out), lse

    monkeypatch.setattr(home, "attend", poisoned)
    model = Model(share_branches=True)
    model.run(steps=2)
    # Six calls in step 0; the seventh, of layer 0 in step 1, goes wrong: it is dense then, the others planned anew.
    assert [seen[:3] for seen in probe.seen[3:]] == [
        *((i, "cond", 1) for i in range(3)),
        *((i, "cond", 1) for i in (1, 2)),
    ]
    assert all(out.isfinite().all() for out in model.out)


def test_a_slower_kernel_and_the_time_of_a_proof_are_noted_with_the_reason(monkeypatch):
    def choose(*tensors, **call):
        first_use.SPENT["hopper"] = 21.4
        return "portable"

    monkeypatch.setattr(first_use, "SPENT", {})
    monkeypatch.setattr(home, "SPENT", first_use.SPENT)
    monkeypatch.setattr(home, "choose", choose)
    monkeypatch.setattr(home, "why_slower", lambda name, *_, **__: f"{name} is what is left: do this")
    model = Model()
    model.run()
    record = summary.record(model.runtime)
    assert record["kernels"] == {"portable": 24} and record["kernel_reasons"] == {
        "portable": "portable is what is left: do this"
    }
    told = "kernel portable in place of hopper, which is faster on this card: portable is what is left: do this"
    assert record["notes"] == ["21 s of this run went into the proof of hopper at its first use", told]


def test_block_mass_by_a_slower_kernel_is_noted_in_runs_that_measure_it(monkeypatch):
    def plan(self, q, k, v, call, plan=Probe.plan):
        first_use.PASSED_OVER["hopper-mass"] = "not yet checked: do this"
        return plan(self, q, k, v, call)

    monkeypatch.setattr(first_use, "PASSED_OVER", {"hopper-mass": "of another run"})
    monkeypatch.setattr(home, "PASSED_OVER", first_use.PASSED_OVER)
    assert Model().run().notes == {}
    monkeypatch.setattr(Probe, "plan", plan)
    (note,) = Model().run().notes
    assert note == "block mass by a kernel that is slower than this card's own: not yet checked: do this"
