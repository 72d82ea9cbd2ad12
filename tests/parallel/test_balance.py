"""Heads of different cost change ranks from step to step, and what is drawn stays what it was."""

import pytest
import torch
import torch.distributed as dist

from dittools.config import Config
from dittools.pipelines.attach import attach
from dittools.ranks import Heads, Ranks
from tests.parallel.scenes import Scene

STEPS = 6


def dealt(degree, method, options):
    """Latents, and which heads each rank had at last, by layer."""
    scene = Scene("wan", degree, steps=STEPS, heads=8, branches=2)
    if degree > 1:
        scene.share()
    attachment = attach(scene, Config(method, 0.6, dense_steps=1, dense_layers=0, options=options))
    # The mass of heads differs more where some see little but themselves.
    with torch.no_grad():
        for block in scene.transformer.blocks:
            block.attn1.norm_k.weight.view(8, -1)[:4] *= 6
    out = scene.draw()
    run = attachment.runtime.run
    attachment.detach()
    return out, dict(run.deals)


@pytest.mark.parametrize("degree", (2, 4))
def test_heads_of_a_layer_budget_are_dealt_by_what_they_cost(degree, pool):
    wanted, nothing = pool.run(dealt, 1, "xattention", {"tau": 0.6})[0]
    answers = pool.run(dealt, degree, "xattention", {"tau": 0.6})
    natural = Heads.even(Ranks(), 8).by_rank
    assert nothing == {} and natural == (tuple(range(8)),)
    for out, deals in answers:
        assert torch.equal(out, wanted)
        assert deals == answers[0][1] and set(deals) == {0, 1}
        for heads in deals.values():
            assert sorted(sum(heads, ())) == list(range(8)) and {len(some) for some in heads} == {8 // degree}
        in_order = tuple(tuple(range(first, first + 8 // degree)) for first in range(0, 8, 8 // degree))
        assert any(heads != in_order for heads in deals.values())


@pytest.mark.parametrize("method", ("draft", "svg2", "adaspa"))
def test_heads_of_equal_budgets_and_such_as_carry_something_stay(method, pool):
    for out, deals in pool.run(dealt, 2, method, {}):
        assert torch.isfinite(out).all()
        assert all(heads == ((0, 1, 2, 3), (4, 5, 6, 7)) for heads in deals.values())


def by_hand(by_rank):
    """What `Heads` makes of a tensor of all heads, of which each rank has some in no order."""
    heads = Heads(Ranks(dist.group.WORLD), by_rank)
    every = torch.arange(7.0)[None, :, None] + torch.zeros(2, 1, 3)
    mine = heads.of(every, 1)
    return mine[0, :, 0].tolist(), torch.equal(heads.gather(mine, 1), every), heads.pick("abcdefg")


def test_dealt_heads_are_cut_and_gathered_in_the_order_of_the_layer(pool):
    by_rank = ((3, 5), (0, 6), (1, 2), (4,))
    for (mine, whole, picked), heads in zip(pool.run(by_hand, by_rank), by_rank, strict=True):
        assert whole and mine == list(heads) and picked == ["abcdefg"[head] for head in heads]
