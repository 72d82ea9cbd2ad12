"""What one sparse call costs the host: operators, and questions that need be asked only once a run."""

from collections import Counter
from dataclasses import dataclass

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dittools.call_splitter as splitter_home
import dittools.methods.base as plan_home
import dittools.sparse as sparse_home
from dittools import methods
from dittools.call_info import CallInfo, Timing
from dittools.config import Config
from dittools.kernels.block_sparse import dispatch
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods import Method, Plan, svg
from dittools.runtime import Layer, Runtime
from dittools.selection import budget, pooled, two_patterns
from dittools.tokens import Part, TokenGrid

GRID = TokenGrid(5, 16, 16)
# What a card runs in one kernel or a few, whatever plain PyTorch makes of it.
KERNELS = [
    (budget, "topk_mask_per_head"),
    (two_patterns, "pack_rows"),
    (pooled, "segment_means"),
    (svg, "probe_errors"),
]
PLANNED, SHARED = "cond", "uncond"


class Operators(TorchDispatchMode):
    """Counts operators that do something; views do not."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = Counter(), False

    def one(self, name, kernel):
        """The kernel, counted as one operator."""

        def counted(*args, **options):
            self.found[name] += 1
            self.inside = True
            made = kernel(*args, **options)
            self.inside = False
            return made

        return counted

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and not self.inside:
            self.found[func.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def draw(method, steps=4, look=None, **settings):
    """A run of three layers; ``look(step, branch)`` gives a context for the call of the last layer."""
    config = Config(method=method, sparsity=0.8, dense_steps=0, dense_layers=0, block_size=64, **settings)
    runtime = Runtime(config, [Layer(f"blocks.{i}", i) for i in range(3)])
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, GRID.tokens, 4, 64, generator=made) for _ in range(3))
    timesteps, outs = torch.linspace(1000, 100, steps), []
    for step, t in enumerate(timesteps):
        for branch in (PLANNED, SHARED):
            runtime.begin_call(CallInfo(Timing(t, timesteps, branch), GRID, torch.device("cpu"), torch.float32))
            for layer in range(3):
                call = (layer, q, k, v)
                if layer == 2 and look is not None:
                    with look(step, branch):
                        outs.append(runtime.attend(*call, dense=None))
                else:
                    outs.append(runtime.attend(*call, dense=None))
            assert not runtime.end_call()
    return runtime, outs


def operators(method, monkeypatch):
    """Operators of a call that plans and of one that takes the plan over, beside those of kernels."""
    monkeypatch.setattr(dispatch, "portable_block_sparse_attention", lambda q, *args, **options: (q, None))
    found, kernels = {}, {name: getattr(home, name) for home, name in KERNELS}

    def look(step, branch):
        found[branch] = Operators()
        for home, name in KERNELS:
            monkeypatch.setattr(home, name, found[branch].one(name, kernels[name]))
        return found[branch]

    draw(method, look=look)
    return found[PLANNED].found, found[SHARED].found


@pytest.mark.parametrize("method, most", [("svg", 20), ("draft", 32), ("gna", 1), ("radial", 1), ("sta", 1)])
@pytest.mark.parametrize("parts", [(), (Part.of("reference", 1, 20, 20),)], ids=["alone", "text and a reference"])
def test_a_call_takes_few_operators(method, most, parts, monkeypatch):
    if parts:  # budgets of their own, and what is kept of each kind of pair
        monkeypatch.setattr(f"{__name__}.GRID", TokenGrid(5, 16, 16, 40, "last", parts))
        most += 12 * (most > 1)
    planned, shared = operators(method, monkeypatch)
    assert planned.total() <= most, planned
    assert shared == Counter({"sum": 1})  # whether the output is finite


def test_a_static_plan_has_one_density_for_the_whole_run():
    runtime, _ = draw("gna")
    assert len({id(call.density) for call in runtime.run.calls}) == 1


@pytest.mark.parametrize("home, name", [(splitter_home, "implementations"), (sparse_home, "choose")])
@pytest.mark.parametrize("method", ["svg", "gna", "svg2"])
def test_what_can_run_a_call_is_asked_only_when_something_is_new(home, name, method, monkeypatch):
    asked, ask = [], getattr(home, name)
    monkeypatch.setattr(home, name, lambda *args, **options: asked.append(args) or ask(*args, **options))
    runtime, _ = draw(method)
    kinds = 2 if method == "svg" and name == "choose" else 1  # plans with an order, and plans without
    assert 1 <= len(asked) <= kinds and len(runtime.run.calls) == 24


@dataclass(frozen=True)
class Misfit(Method):
    """Its mask is for one token more than there are."""

    name, summary = "misfit", "for this test"

    def plan(self, q, k, v, call):
        blocks = Partition(q.shape[1] + 1, call.block_size)
        return Plan(None, BlockMask.full(blocks, blocks))


def test_a_new_plan_that_does_not_fit_its_call_is_still_refused(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "misfit", Misfit)
    with pytest.raises(ValueError, match="partitions 1281 queries"):
        draw("misfit")


@pytest.mark.parametrize("method", ["svg", "draft"])
@pytest.mark.parametrize("settings", [{}, {"refresh": 2}])
def test_plans_too_large_to_keep_are_packed_and_made_again_as_they_were(method, settings, monkeypatch):
    _, kept = draw(method, **settings)
    packed = []
    init = Plan.__init__

    def told(self, *args, **options):
        init(self, *args, **options)
        if self.pack is not None:
            made = self.pack
            object.__setattr__(self, "pack", lambda: packed.append(1) or made())

    monkeypatch.setattr(Plan, "__init__", told)
    draw(method, **settings)
    assert not packed
    monkeypatch.setattr(plan_home, "KEPT_BYTES", 0)
    _, again = draw(method, **settings)
    assert packed and all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_a_call_is_cut_into_pieces_once_a_forward(monkeypatch):
    cut, sub_calls = [], splitter_home.sub_calls
    monkeypatch.setattr(splitter_home, "sub_calls", lambda *args: cut.append(args) or sub_calls(*args))
    draw("gna", steps=2)
    assert len(cut) == 4  # forwards, of three layers each
