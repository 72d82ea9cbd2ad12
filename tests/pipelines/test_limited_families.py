"""Models whose queries see different keys, in whole forwards: budgets of what a mask shows, and nothing beyond it."""

from functools import cache

import pytest
import torch

from dittools import methods
from tests.families_tiny import TINY
from tests.pipelines.test_families import Holder, Shown

FRAMES = (6, 12, 16)
IMAGE, SECOND = (1, 24, 32), (1, 32, 24)


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "shown", Shown)


def causal() -> tuple[Holder, dict]:
    """SkyReels-V2 with diffusion forcing in blocks of two frames, as its pipeline sets it."""
    holder = Holder("skyreels-v2")
    holder.transformer._set_ar_attention(2)
    arguments = TINY["skyreels-v2"].arguments(FRAMES, 1)
    return holder, arguments | {"timestep": torch.tensor([[100.0] * 2 + [500.0] * 4]), "enable_diffusion_forcing": True}


def packed() -> tuple[Holder, dict]:
    """Ideogram 4 with two pictures in one sequence, each with a text of its own."""
    holder, one, two = Holder("ideogram-4"), *(TINY["ideogram-4"].arguments(grid, 1) for grid in (IMAGE, SECOND))
    two["segment_ids"] = two["segment_ids"] + 1
    joined = {name: torch.cat((value, two[name]), 1) if value.ndim > 1 else value for name, value in one.items()}
    return holder, joined


def prompted() -> tuple[Holder, dict]:
    return Holder("omnigen"), TINY["omnigen"].arguments(IMAGE, 2)


MODELS = {"causal": causal, "packed": packed, "prompted": prompted}


@cache
def model(name):
    return MODELS[name]()


def beyond(name: str, arguments: dict) -> tuple[dict, slice, int]:
    """Arguments in which what most queries must not see is another; whose output stays, along which axis."""
    latents = arguments["hidden_states"].clone()
    if name == "causal":
        latents[:, :, 4:] += 1
        return arguments | {"hidden_states": latents}, slice(0, 4), 2
    latents[:, -32 * 24 :] += 1
    return arguments | {"hidden_states": latents}, slice(0, latents.shape[1] - 32 * 24 - 7), 1


RUNS = [*(("causal", method) for method in ("draft", "svg", "gna", "svg2", "todo")), ("packed", "draft")]


@pytest.mark.parametrize(("name", "method"), [*RUNS, ("prompted", "draft")])
def test_full_budget_is_dense_and_every_kind_of_pair_keeps_what_is_asked_of_those_that_are_seen(name, method):
    holder, arguments = model(name)
    out, record = holder.run(method, arguments, 0.0, block_size=64)
    torch.testing.assert_close(out, holder.draw(arguments), rtol=1e-4, atol=1e-4)
    assert record["fallbacks"] == [] and record["calls"]["dense"] == 0
    _, record = holder.run(method, arguments, 0.8, block_size=64)
    assert record["fallbacks"] == []
    kept, of = record["sparsity"]["by_parts"], record["sparsity"]["pairs_by_parts"]
    assert kept["picture-picture"] == pytest.approx(0.2, abs=0.03)
    assert sum(of.values()) == pytest.approx(1)
    if name == "causal":
        assert set(kept) == {"picture-picture", "picture-history"}
        assert kept["picture-history"] == pytest.approx(0.2, abs=0.03)
        assert of["picture-history"] == pytest.approx(1 / 2)  # frames of before and own ones in three blocks of two
        assert record["sparsity"]["sparse_calls"] == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("correction", ["none", "centroids", "rettention"])
@pytest.mark.parametrize("name", ["causal", "packed"])
def test_nothing_beyond_the_limit_has_an_influence(name, correction):
    holder, arguments = model(name)
    other, stays, axis = beyond(name, arguments)
    for method in ("draft", "svg2") if (correction, name) == ("none", "causal") else ("draft",):
        found = [
            holder.run(method, given, 0.7, block_size=64, correction=correction)[0] for given in (arguments, other)
        ]
        one, two = (x.movedim(axis, 0) for x in found)
        assert torch.equal(one[stays], two[stays]) and not torch.equal(one, two)
