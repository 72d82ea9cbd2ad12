"""What one rank meets alone, all ranks act upon: a result that is not finite, an error, a call that stays dense."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist

import dittools.sparse as home
from dittools import summary
from dittools.config import Config
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods import METHODS
from dittools.methods.base import Method, Plan, StayDense
from dittools.methods.draft import Draft
from dittools.methods.oracle import Oracle
from dittools.pipelines.attach import attach
from tests.parallel.scenes import Scene

LAST = 1  # layer
HOW = {"sparsity": 0.6, "dense_steps": 1, "dense_layers": 0}


class Fault(ValueError):
    """Raised on one rank."""


@contextmanager
def nan_in(layer, step, here):
    """The attention of this layer and step gives a NaN where ``here`` says so, once."""
    true, calls = home.attend, []

    def attend(*args, **kwargs):
        out, lse = true(*args, **kwargs)
        place = now["layer"], now["step"]
        if here and place == (layer, step) and not calls:
            calls.append(place)
            out = out.clone()
            out[0, 0, 0, 0] = float("nan")
        return out, lse

    now, make = {}, home.Sparse._call

    def told(self, inputs, info, grid, part):
        now.update(layer=inputs.layer, step=info.step)
        return make(self, inputs, info, grid, part)

    home.attend, home.Sparse._call = attend, told
    try:
        yield
    finally:
        home.attend, home.Sparse._call = true, make


def with_nan(degree, method, layer, rank):
    """Latents, record and non-finite layers; ``rank`` None: on one device."""
    scene = Scene("wan", degree, branches=2)
    if degree > 1:
        scene.share()
    with nan_in(layer, 2, rank is None or dist.get_rank() % degree == rank):
        attachment = attach(scene, Config(method, **HOW))
        out = scene.draw()
    record = summary.record(attachment.runtime)
    attachment.detach()
    return out, record, sorted(attachment.runtime.run.dense_from)


@pytest.mark.parametrize("layer", (0, LAST))
@pytest.mark.parametrize("method", ("svg", "xattention"))
@pytest.mark.parametrize("degree", (2, 4))
def test_a_nan_on_one_rank_runs_the_forward_again_on_all(degree, method, layer, pool):
    wanted, expected, places = pool.run(with_nan, 1, method, layer, None)[0]
    answers = pool.run(with_nan, degree, method, layer, 1)
    assert places == [(2, layer)] and torch.isfinite(wanted).all()
    for out, record, found in answers:
        assert found == places and torch.equal(out, wanted)
        for fact in ("calls", "fallbacks"):
            assert record[fact] == expected[fact]
        # One device tells a missed sparsity in the call, ranks at the end of the forward.
        assert sorted(record["notes"]) == sorted(expected["notes"])
        assert any("non-finite result" in note for note in record["notes"])


@dataclass(frozen=True)
class Fails(Draft):
    """Raises on rank 1, before or behind what ranks do together."""

    name: ClassVar[str] = "fails"
    behind: bool = False

    def plan(self, q, k, v, call):
        mine = call.step == 2 and call.layer == 0 and dist.get_rank() % call.heads.ranks.size == 1
        if mine and not self.behind:
            raise Fault("out of luck")
        plan = super().plan(q, k, v, call)
        if mine:
            raise Fault("out of luck")
        return plan


def failing(degree, options):
    """What was raised, and whether the ranks can draw afterwards."""
    METHODS["fails"] = Fails
    scene = Scene("wan", degree, branches=2)
    scene.share()
    attachment = attach(scene, Config("fails", **HOW, options=options))
    try:
        scene.draw()
        said = None
    except Exception as error:
        said = type(error).__name__, str(error)
    attachment.detach()
    del METHODS["fails"]
    return said, scene.accelerated(method="draft")[0]


@pytest.mark.parametrize("degree", (2, 4))
@pytest.mark.parametrize(
    "options",
    ({"scope": "row"}, {"scope": "layer"}, {"scope": "layer", "behind": True}, {"scope": "adaptive"}),
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_an_error_in_the_planning_of_one_rank_ends_all_and_leaves_their_group_whole(degree, options, pool):
    answers = pool.run(failing, degree, options)
    for rank, (said, out) in enumerate(answers):
        kind, text = said
        mine = rank % degree == 1
        assert kind == ("Fault" if mine else "FailedElsewhere") and "out of luck" in text
        assert mine or text.startswith("rank 1: ")
        assert torch.equal(out, answers[0][1]) and torch.isfinite(out).all()


@dataclass(frozen=True)
class Shy(Method):
    """Not ours, and ignorant of other ranks: stays dense where it sees head 0 alone, by what is in it."""

    name: ClassVar[str] = "shy"
    stays: bool = True

    def asked(self, call):
        return None

    def plan(self, q, k, v, call):
        if self.stays and call.layer == 0 and dist.get_rank() % call.heads.ranks.size == 1:
            return StayDense("rank 1 saw enough")
        partition = Partition(q.shape[1], call.block_size)
        keep = torch.eye(partition.count, dtype=torch.bool)[None, None]
        return Plan(None, BlockMask(keep, partition, partition))


def shy(degree, stays):
    METHODS["shy"] = Shy
    scene = Scene("wan", degree, branches=2)
    if degree > 1:
        scene.share()
    try:
        return scene.accelerated(method="shy", options={"stays": stays})
    finally:
        del METHODS["shy"]


def test_a_call_that_stays_dense_on_one_rank_does_on_all(pool):
    for out, record in pool.run(shy, 2, True):
        assert record["fallbacks"] == [{"reason": "rank 1 saw enough", "count": 4}]
        assert record["calls"]["sparse"] == 4 and record["calls"]["dense"] == 8
        assert torch.isfinite(out).all()


def test_a_method_that_knows_of_no_ranks_keeps_its_budget_and_is_told_of(pool):
    wanted, expected = pool.run(shy, 1, False)[0]
    for out, record in pool.run(shy, 4, False):
        assert torch.equal(out, wanted)
        assert record["calls"] == expected["calls"]
        assert [note for note in record["notes"] if "does not know of heads on other ranks" in note]


def either_order(degree, first):
    """Latents and record where ``accelerate`` comes first or second, and what is left after it."""
    scene = Scene("wan", degree, branches=2)
    plain = Scene("wan", degree, branches=2)
    plain.share()
    dense = plain.draw()
    if first == "parallel":
        scene.share()
    attachment = attach(scene, Config("draft", **HOW))
    if first == "accelerate":
        scene.share()
    out = scene.draw()
    record = summary.record(attachment.runtime)
    attachment.detach()
    return out, record, torch.equal(scene.draw(), dense)


@pytest.mark.parametrize("degree", (2, 4))
def test_the_order_of_both_calls_does_not_matter_and_restore_gives_back_what_diffusers_does(degree, pool):
    found = [pool.run(either_order, degree, first) for first in ("parallel", "accelerate")]
    for (one, first, restored), (other, second, again) in zip(*found, strict=True):
        assert torch.equal(one, other) and restored and again
        assert first["calls"] == second["calls"] and first["calls"]["sparse"] == 8


def test_methods_of_ours_know_of_heads_on_other_ranks():
    assert all(kind.knows_heads for kind in METHODS.values())
    assert not Method.knows_heads and Oracle.knows_heads
