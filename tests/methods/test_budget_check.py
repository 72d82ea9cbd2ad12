"""A sparsity that is missed is told, whatever method misses it, once a run and without waiting for a device."""

import pytest
import torch

from dittools import budget_check
from dittools.kinds import kept_by_kind
from dittools.methods import METHODS, create
from dittools.scoped_cache import ScopedCache
from dittools.selection.geometric import TOLERANCE
from dittools.tokens import TokenGrid
from tests.methods.scenes import BLOCK, call
from tests.methods.watch import NoSync

FEW = TokenGrid(5, 5, 4)  # seven blocks
TEXT = TokenGrid(3, 4, 5, text=70, text_position="last")
NAMES = [name for name, cls in METHODS.items() if name not in ("dense", "trained") and cls.profile_use != "needed"]


def plan_of(name, grid, sparsity, options=None, seed=0, alike=False, **how):
    made = torch.Generator().manual_seed(seed)
    drawn = torch.randn(3, 1, 1 if alike else grid.tokens, 2, 16, generator=made)
    return create(name, options or {}).plan(*drawn.expand(3, 1, grid.tokens, 2, 16), call(grid, sparsity, **how))


def told(plan):
    return [note for note in plan.notes if "was asked" in note]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_skipped_is_what_was_asked_or_told(name):
    misses = set()
    for grid, sparsity, alike in (
        *((FEW, sparsity, False) for sparsity in (0.07, 0.35, 0.5, 0.97)),
        (TEXT, 0.9, False),
        (FEW, 0.5, True),
    ):
        plan = plan_of(name, grid, sparsity, alike=alike)
        kinds = kept_by_kind(plan, grid)
        skipped = 1 - (plan.density().mean() if kinds is None else kinds[0, 0]).item()
        wrong = abs(skipped - sparsity) > TOLERANCE
        misses |= {sparsity} if wrong else set()
        assert len(told(plan)) == wrong, (grid, sparsity, skipped, plan.notes)
        if wrong:
            assert f"skips {skipped:.2f} of the picture's pairs, and {sparsity:g} was asked" in told(plan)[0]
            assert told(plan)[0].startswith(f"{name}, layer 1, step 5: ")
            blocks = grid is TEXT and name not in ("svg2", "svg_ear", "todo")
            assert ("blocks that hold text too, and so stay dense" in told(plan)[0]) == blocks
    assert misses & {0.97, 0.5} or name == "todo", misses


def test_an_option_that_decides_in_place_of_the_sparsity_misses_nothing():
    some = {"top_p": 0.9, "tau": 0.5, "window": 3, "radius": 3, "decay": 0.2, "stride": 2, "references": 1}
    knobs = [(name, knob) for name in NAMES for knob in METHODS[name].decides]
    assert {knob for _, knob in knobs} == set(some) and ("svg_ear", "top_p") in knobs
    for name, knob in knobs:
        for sparsity, alike in ((0.97, False), (0.5, True)):  # what every method misses one of, above
            how = {"sparsity": sparsity, "alike": alike}
            assert not told(plan_of(name, FEW, options={knob: some[knob]}, **how)), name


@pytest.mark.parametrize("name", ["svg2", "draft", "sta"])
def test_a_run_tells_it_in_one_line(name):
    memo = ScopedCache()
    plans = [plan_of(name, FEW, 0.97, run_cache=memo, step=step, layer=2, seed=step) for step in range(3)]
    assert len({note for plan in plans for note in told(plan)}) == 1
    assert all(told(plan) for plan in plans) and "layer 2, step 0" in told(plans[2])[0]
    if name == "sta":  # one plan for all calls: its share is one tensor, read once
        assert plans[0].share is plans[2].share and plans[0].readings[FEW] is plans[2].readings[FEW]


class Late(budget_check.HostReading):
    """A number that arrives when told to, as one does from a GPU."""

    here = False
    asked = 0

    @property
    def value(self):
        Late.asked += 1
        return super().value if Late.here else None


def test_a_share_that_arrives_later_is_told_by_a_later_plan_and_nothing_waits(monkeypatch):
    monkeypatch.setattr(budget_check, "HostReading", Late)
    monkeypatch.setattr(Late, "here", False)
    memo = ScopedCache()
    assert not told(plan_of("svg2", FEW, 0.97, run_cache=memo, step=1))
    fine = TokenGrid(9, 16, 16)
    assert not told(plan_of("svg2", fine, 0.8, run_cache=memo, step=2))
    Late.here = True
    found = [told(plan_of("svg2", fine, 0.8, run_cache=memo, step=step)) for step in (3, 4)]
    assert len(found[0]) == 1 and "layer 1, step 1" in found[0][0] and not found[1]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_holding_a_share_against_what_was_asked_reads_no_device(device):
    plan = plan_of("draft", FEW, 0.5)
    number, asked = torch.tensor(0.9).to(device), call(FEW, 0.5)
    plan.readings.clear(), vars(plan).update(share=number)
    with NoSync():
        found = budget_check.BudgetCheck().of(plan, "draft", 0.5, asked)
    assert len(found) == (device == "cpu") and plan.mask.key.size == BLOCK


def test_text_that_leaves_much_less_skipped_of_all_pairs_is_told_once_and_for_all_methods():
    for name, sparsity in (("draft", 0.5), ("svg2", 0.5), ("todo", 0.5)):
        plan = plan_of(name, TEXT, sparsity)
        said = [note for note in plan.notes if "stays dense is in" in note]
        share = 1 - (60 / 130) ** 2
        assert said == [
            f"text and what else stays dense is in {share:.2f} of all pairs: "
            f"of these a call skips {0.5 * (1 - share):.2f}"
        ]
    few = TokenGrid(9, 16, 16, text=60, text_position="first")
    assert budget_check.beside(few, 0.9) == () != budget_check.beside(few, 1.0 + 1)
