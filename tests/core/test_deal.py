"""Heads dealt to ranks: every head once, as many heads a rank as before, and never a slower slowest rank."""

import itertools
import math
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.deal import WAYS, Deal, deal, shares
from dittools.ranks import Heads

COSTS = st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=48)
RANKS = st.integers(1, 64)
ANY_WAY = st.sampled_from(sorted(WAYS))


def natural_slowest(costs, ranks):
    room, first = shares(len(costs), ranks), 0
    loads = []
    for count in room:
        loads.append(math.fsum(costs[first : first + count]))
        first += count
    return max(loads)


def best(costs, ranks):
    """The least that the slowest rank can have with these heads a rank, by trying all ways."""
    room, least = shares(len(costs), ranks), math.inf
    for order in itertools.permutations(range(len(costs))):
        heads, slowest = iter(order), 0.0
        for count in room:
            slowest = max(slowest, sum(costs[next(heads)] for _ in range(count)))
        least = min(least, slowest)
    return least


@settings(deadline=None)
@given(COSTS, RANKS, ANY_WAY)
def test_every_head_is_dealt_once_and_ranks_keep_their_number_of_heads(costs, ranks, way):
    dealt = deal(costs, ranks, way)
    assert sorted(dealt.order) == list(range(len(costs)))
    assert [len(some) for some in dealt.heads] == shares(len(costs), ranks)
    assert [dealt.order[place] for place in dealt.back] == list(range(len(costs)))
    assert dealt.loads == tuple(math.fsum(costs[head] for head in some) for some in dealt.heads)


@settings(deadline=None)
@given(COSTS, RANKS, ANY_WAY, st.sampled_from([0.0, 0.01, 0.5]))
def test_the_slowest_rank_is_never_slower_than_in_the_natural_order(costs, ranks, way, least_gain):
    dealt = deal(costs, ranks, way, least_gain)
    natural = natural_slowest(costs, ranks)
    assert max(dealt.loads) <= natural
    assert dealt.natural or max(dealt.loads) < natural * (1 - least_gain)


@settings(deadline=None)
@given(st.floats(0, 1e6), st.integers(1, 48), RANKS, ANY_WAY)
def test_equal_costs_keep_the_natural_order(cost, heads, ranks, way):
    assert deal([cost] * heads, ranks, way).natural


@settings(deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 4))
def test_the_greedy_deal_is_within_a_third_of_the_best_there_is(costs, ranks):
    found = max(deal(costs, ranks, least_gain=0).loads)
    assert found <= best(costs, ranks) * (4 / 3) + 1e-9


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 8), st.data())
def test_ranks_of_a_snake_differ_by_no_more_than_two_heads_do(each, ranks, data):
    costs = data.draw(st.lists(st.integers(0, 1000), min_size=each * ranks, max_size=each * ranks))
    loads = [sum(costs[head] for head in some) for some in WAYS["snake"](costs, shares(len(costs), ranks))]
    assert max(loads) - min(loads) <= max(costs) - min(costs)


def test_the_costliest_heads_go_to_different_ranks():
    costs = [8, 7, 6, 5, 4, 3, 2, 1]
    dealt = deal(costs, 4)
    assert dealt.loads == (9, 9, 9, 9) and dealt.balance == 1
    assert dealt.heads == ((0, 7), (1, 6), (2, 5), (3, 4))
    assert deal(costs, 4, "snake") == dealt
    assert deal(costs, 4, "natural").balance == pytest.approx(15 / 9)


def test_greedy_finds_what_the_snake_does_not():
    costs = [10, 4, 3, 6, 5, 2]
    assert deal(costs, 2).loads == (16, 14)
    assert deal(costs, 2, "snake").natural  # 10 4 3 and 6 5 2 is what it finds


def test_a_gain_that_is_too_small_permutes_nothing():
    costs = [1.0, 1.004, 1.0, 1.0, 1.0, 0.996]
    assert deal(costs, 3).natural and not deal(costs, 3, least_gain=0).natural


def test_heads_that_do_not_divide_leave_one_head_more_to_the_first_ranks():
    assert shares(24, 16) == [2] * 8 + [1] * 8
    costs = [1.0] * 8 + [3.0] * 8 + [1.0] * 8
    dealt = deal(costs, 16)
    assert [len(some) for some in dealt.heads] == [2] * 8 + [1] * 8
    assert max(dealt.loads) == 3  # heads of 3 stand alone
    assert max(deal(costs, 16, "natural").loads) == 6


@pytest.mark.parametrize(("heads", "ranks"), [(40, 8), (24, 16), (3, 4), (12, 1)])
def test_the_natural_order_is_that_of_an_even_exchange(heads, ranks):
    shared = Heads.even(SimpleNamespace(size=ranks), heads)
    assert shared.by_rank == deal([1.0] * heads, ranks).heads


def test_more_ranks_than_heads_leave_ranks_without_one():
    dealt = deal([1.0, 2.0], 4)
    assert dealt.heads == ((0,), (1,), (), ()) and dealt.natural
    assert dealt.balance == pytest.approx(2 / (3 / 4))


def test_heads_that_cost_nothing_are_balanced():
    assert deal([0.0] * 4, 2) == Deal(((0, 1), (2, 3)), (0.0, 0.0))
    assert deal([0.0] * 4, 2).balance == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (([1.0, math.nan], 2), "got nan for head 1"),
        (([1.0, -0.5], 2), "got -0.5 for head 1"),
        (([], 2), "got 0 heads"),
        (([1.0], 0), "and 0 ranks"),
        (([1.0], 1, "gredy"), "did you mean greedy"),
    ],
)
def test_what_cannot_be_dealt_is_said(arguments, says):
    with pytest.raises(ValueError, match=says):
        deal(*arguments)
