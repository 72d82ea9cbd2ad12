"""Budgets of sequences that hold history or reference images, through whole forwards: the picture keeps its share."""

from functools import cache

import pytest
import torch

from dittools.cli.record import _skipped
from dittools.methods import METHODS, AttentionCall, create
from dittools.pipelines.families import find_family
from dittools.pipelines.step_reuse import picture_in
from dittools.tokens import Layout, Part, TokenGrid
from tests.families_tiny import TINY, minimax_h3, noise
from tests.methods.scenes import shares
from tests.pipelines.test_families import Holder
from tests.pipelines.test_masks import with_references

IMAGE = (1, 32, 32)
# Sequences of which more than 1 - sparsity is no picture, but for Helios.
SEQUENCES = {
    "framepack": (9, 12, 16),
    "flux, one": ((24, 20),),
    "flux, two": ((24, 20), (32, 40)),
    "qwen-image, two": ((24, 20), (36, 32)),
    "helios": (9, 12, 16),
    "minimax-h3": (9, 12, 16),
}
# A row for each way in which a budget is spent: scores, a static band, windows, clusters, fewer keys.
WAYS = ("adaspa", "svg", "gna", "svg2", "todo")
EVERY = [name for name, kind in METHODS.items() if kind.profile_use != "needed" and name not in ("dense", "trained")]


@cache
def sequence(name):
    """A tiny model and arguments of one forward."""
    family, _, _ = name.partition(",")
    if find_family(family).draws == "image":
        return Holder(family), with_references(family, IMAGE, SEQUENCES[name])
    arguments = TINY[family].arguments(SEQUENCES[name], 1)
    if family == "framepack":
        arguments |= {"image_embeds": noise(1, 49, 16)}
    if family == "minimax-h3":
        arguments = minimax_h3(SEQUENCES[name], 1, ("first", "last"))
    return Holder(family), arguments


def able(method, name):
    return METHODS[method]().why_not(TokenGrid(*(IMAGE if "," in name else SEQUENCES[name])), 64) is None


@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_full_budget_is_dense_and_the_picture_keeps_what_is_asked_of_its_own_pairs(name, method):
    if not able(method, name):
        pytest.skip(f"{method} needs a video")
    holder, arguments = sequence(name)
    out, record = holder.run(method, arguments, 0.0, block_size=64)
    torch.testing.assert_close(out, holder.draw(arguments), rtol=1e-4, atol=1e-4)
    for sparsity in (0.5, 0.8, 0.9):
        _, record = holder.run(method, arguments, sparsity, block_size=64)
        assert record["fallbacks"] == []
        kept, of = record["sparsity"]["by_parts"], record["sparsity"]["pairs_by_parts"]
        assert kept["picture-picture"] == pytest.approx(1 - sparsity, abs=0.02)
        assert sum(kept[kind] * of[kind] for kind in kept) == pytest.approx(
            1 - record["sparsity"]["sparse_calls"], abs=1e-4
        )
        assert all(share == pytest.approx(1) for kind, share in kept.items() if "text" in kind)


def test_every_method_leaves_the_picture_its_share_beside_history_and_references():
    for name, sparsity in (("framepack", 0.8), ("flux, two", 0.9)):
        holder, arguments = sequence(name)
        for method in EVERY:
            if able(method, name):
                _, record = holder.run(method, arguments, sparsity, block_size=64)
                kept = record["sparsity"]["by_parts"]
                assert kept["picture-picture"] == pytest.approx(1 - sparsity, abs=0.02), (name, method)
                other = "history" if name == "framepack" else "reference"
                assert kept[f"picture-{other}"] < 1 - sparsity + 0.1, (name, method)  # a mixed block is dense


HISTORY = tuple(Part.of("history", *shape) for shape in ((4, 8, 13), (1, 15, 26), (2, 30, 52)))
SIZES = {
    "framepack at 480 x 832": TokenGrid(9, 30, 52, 256, "last", (*HISTORY, Part.of("reference", 1, 27, 27))),
    "an edit of 1024 x 1024": TokenGrid(1, 64, 64, 512, "first", (Part.of("reference", 1, 64, 64),)),
}


@pytest.mark.parametrize("method, options", [("adaspa", {"rows": 8}), ("sparge", {}), ("draft", {}), ("clear", {})])
@pytest.mark.parametrize("size", SIZES)
def test_at_real_sizes_little_more_is_kept_of_all_pairs_than_of_the_pictures_own(size, method, options):
    grid = SIZES[size]
    made = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, grid.tokens, 1, 16, generator=made) for _ in range(3))
    call = AttentionCall(3, 8, "cond", 5, 25, grid, 0.8, 0.25, made, 128)
    plan = create(method, options).plan(q, k, v, call)
    assert shares(plan, grid).item() == pytest.approx(0.2, abs=0.02)
    assert shares(plan, grid, "picture", "reference").item() == pytest.approx(0.2, abs=0.06)
    assert plan.density().item() <= 0.27 + 0.05 * (grid.frames == 1)  # of the edit's tokens 512 are text
    assert not any("cannot skip" in note for note in plan.notes)


def test_what_was_asked_is_told_of_the_picture_where_text_is_dense_beside_it():
    _, record = sequence("flux, one")[0].run("draft", sequence("flux, one")[1], 0.8, block_size=64)
    said = _skipped("draft", "none", record["sparsity"], record["calls"])
    share = record["sparsity"]["sparse_calls"]
    assert "skipped 80." in said and f"of the picture's own pairs and {share:.1%} in sparse calls (80% asked)" in said
    alone = {**record["sparsity"], "by_parts": {"picture-picture": 0.2}}
    assert "own pairs" not in _skipped("draft", "none", alone, record["calls"])


@pytest.mark.parametrize(
    ("layout", "tokens", "start"),
    [
        (Layout(1, 2, 2, None, (Part.of("reference", 1, 1, 3),)), 4 + 3, 0),  # before text has joined them
        (Layout(1, 2, 2, None, (Part.of("reference", 1, 1, 3),)), 9 + 4 + 3, 9),
        (Layout(1, 2, 2, (Part.of("history", 1, 1, 3),), (Part("text", None),)), 3 + 4, 3),
        (Layout(1, 2, 2, (Part.of("history", 1, 1, 3),), (Part("text", None),)), 3 + 4 + 8, 3),
        (Layout(1, 2, 2, None, (Part.of("reference", 1, 1, 3),)), 5, None),
    ],
)
def test_a_cache_finds_the_picture_among_its_parts_with_and_without_text(layout, tokens, start):
    assert picture_in(layout, tokens) == (None if start is None else slice(start, start + 4))
