"""Plans picked from two patterns by number: the masks, orders and shares of the patterns themselves."""

import pytest
import torch

from dittools.kernels.probe.dispatch import unpack_masks
from dittools.methods.svg import SVG, pattern_plan
from dittools.selection.two_patterns import TwoPatterns
from dittools.tokens import TokenGrid
from tests.methods.test_svg import call

GRIDS = [TokenGrid(6, 9, 11), TokenGrid(5, 8, 8, text=13, text_position="last")]
SECOND = torch.tensor([[True, False, True], [False, False, True]])


@pytest.fixture(params=GRIDS, ids=str)
def patterns(request):
    return SVG().patterns(call(request.param), torch.device("cpu"))


def test_every_head_gets_its_pattern_whole(patterns):
    plan = pattern_plan(TwoPatterns.of(*patterns), SECOND)
    for b in range(2):
        for h in range(3):
            mine = patterns[int(SECOND[b, h])]
            assert torch.equal(plan.order[b, h], mine.order)
            assert torch.equal(plan.mask.keep[b, h], mine.mask.keep[0, 0])
            assert torch.equal(plan.mask.kv_blocks()[0][b, h], mine.mask.kv_blocks()[0][0, 0])
            assert torch.equal(plan.mask.kv_blocks()[1][b, h], mine.mask.kv_blocks()[1][0, 0])
            assert plan.density()[b, h] == mine.mask.density()
    assert plan.share == plan.density().mean()


def test_rows_are_those_of_the_patterns(patterns):
    tokens = torch.tensor([0, 7, 100, 319])
    both = unpack_masks(TwoPatterns.of(*patterns).rows(tokens), len(patterns[0].order))
    assert all(torch.equal(rows, pattern.rows(tokens)) for rows, pattern in zip(both, patterns, strict=True))


def test_a_packed_plan_is_the_plan(patterns):
    plan = pattern_plan(TwoPatterns.of(*patterns), SECOND)
    again = plan.pack()()
    assert torch.equal(plan.order, again.order) and torch.equal(plan.mask.keep, again.mask.keep)
    assert torch.equal(plan.share, again.share)


def test_no_order_where_no_head_runs_the_second(patterns):
    assert TwoPatterns.of(*patterns).select(torch.zeros(1, 3, dtype=torch.bool))[0] is None
