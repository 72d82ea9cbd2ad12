"""Every record against diffusers' own class: a tiny random model of it, driven by hand on the CPU.

A test's id is the family's name, so a release of diffusers that moves a class fails by that name.
"""

from __future__ import annotations

import math
import types
from dataclasses import dataclass

import diffusers
import pytest
import torch

from dittools import methods, summary
from dittools.config import Config
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.methods.base import Method, Plan
from dittools.pipelines.attach import attach
from dittools.pipelines.backend import names_backend
from dittools.pipelines.errors import BadInput
from dittools.pipelines.families import FAMILIES, find_family
from dittools.pipelines.grids import GRIDS
from tests.families_tiny import TEXT, TINY, noise, transformer

ABLE = [family.name for family in FAMILIES if family.why_not is None]
UNABLE = [family.name for family in FAMILIES if family.why_not is not None]
JOINT = [name for name in ABLE if find_family(name).text_has_queries]
CAUSAL = ["omnigen"]  # text that sees what is before it, by a mask: it is joined beside what a method plans
KEYS_ALONE = [name for name in ABLE if find_family(name).text_position.startswith("keys")]

# What each test shows of a family; tools/models_matrix.py keeps which passed.
CHECKS = {
    "test_full_budget_is_dense_in_a_batch_whose_texts_differ_in_length": "budget",
    "test_a_mask_along_an_axis_keeps_a_change_where_it_was_made": "axes",
    "test_text_reaches_the_picture_only_from_where_the_record_has_it": "text",
    "test_text_that_is_causal_reaches_the_picture_whatever_a_method_keeps": "text",
    "test_every_query_sees_text_that_is_keys_alone_and_no_budget_counts_it": "keys",
    "test_restore_is_bit_identical": "restore",
}


def grid_of(name: str) -> tuple[int, int, int]:
    """Odd enough that no block size divides it."""
    return (3, 8, 9) if find_family(name).draws == "video" else (1, 14, 15)


@dataclass(frozen=True)
class Shown(Method):
    """Test masks: "all" pairs, within the "frame", "row" or "column", or picture and text "apart"."""

    name = "shown"
    summary = "for tests"
    rule: str = "all"

    def why_not(self, grid, block_size):
        return None

    def plan(self, q, k, v, call):
        grid = call.grid
        if self.rule == "all":
            blocks = Partition(grid.tokens, 16)
            return Plan(None, BlockMask.full(blocks, blocks))
        group = torch.full((grid.tokens,), -1)
        axis = ("frame", "row", "column").index(self.rule) if self.rule != "apart" else None
        group[grid.video_slice] = 0 if axis is None else grid.positions()[:, axis]
        single = Partition(grid.tokens, 1)
        return Plan(None, BlockMask((group[:, None] == group)[None, None], single, single))


@pytest.fixture(autouse=True)
def shown(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "shown", Shown)


class Holder:
    """As much of a pipeline as an acceleration needs."""

    def __init__(self, name: str):
        self.transformer = transformer(name, find_family(name).transformer)
        self.scheduler = types.SimpleNamespace(timesteps=torch.tensor([900.0, 500.0, 100.0]))

    def draw(self, arguments):
        with torch.no_grad():
            out = self.transformer(**arguments, return_dict=False)
        while not isinstance(out, torch.Tensor):
            out = out[0]
        return out

    def sparse(self, rule: str, arguments):
        """Output and record with every layer under this rule."""
        return self.run("shown", arguments, options={"rule": rule})

    def run(self, method: str, arguments, sparsity: float = 0.5, **settings):
        """Output and record with every layer by this method."""
        attachment = attach(self, Config(method, sparsity, dense_steps=0, dense_layers=0, **settings))
        try:
            out = self.draw(arguments)
            return out, summary.record(attachment.runtime) | {"position": attachment.runtime.run.grid.text_position}
        finally:
            attachment.detach()


@pytest.fixture(scope="module")
def holders():
    made = {}
    return lambda name: made.setdefault(name, None) or made.update({name: Holder(name)}) or made[name]


def spread(hit: torch.Tensor, axes: str, patch, ahead: int = 0) -> torch.Tensor:
    """Tokens ``[F, H, W]`` marked in a tensor with these axes, broadcast over the others."""
    if "n" in axes:
        return torch.nn.functional.pad(hit.flatten(), (ahead, 0))[:, None]
    for dim, size in enumerate(patch):
        hit = hit.repeat_interleave(size, dim)
    axes = "cfhw" if axes == "list" else axes.lstrip("b")
    hit = hit if "f" in axes else hit[0]
    return hit.unsqueeze(axes.index("c"))


def changed(before: torch.Tensor, after: torch.Tensor, axes: str, patch, grid, ahead: int = 0) -> torch.Tensor:
    """Which tokens ``[F, H, W]`` of the first sample differ."""
    differs = (before != after)[(0,) * (before.ndim - 4)] if axes == "list" else (before != after)[0]
    if "n" in axes:
        return differs[ahead:].any(-1).view(grid)
    axes = "cfhw" if axes == "list" else axes.lstrip("b")
    differs = differs.any(axes.index("c"))
    differs = differs if "f" in axes else differs[None]
    (f, pf), (h, ph), (w, pw) = zip(grid, patch, strict=True)
    return differs.view(f, pf, h, ph, w, pw).any(5).any(3).any(1)


def test_every_family_that_runs_sparse_has_a_tiny_model_and_a_reader_of_its_grid():
    assert [name for name in ABLE if name not in TINY] == []
    assert [name for name in ABLE if find_family(name).grid not in GRIDS] == []


@pytest.mark.parametrize("name", ABLE)
def test_full_budget_is_dense_in_a_batch_whose_texts_differ_in_length(name, holders):
    holder, family = holders(name), find_family(name)
    arguments = TINY[name].arguments(grid_of(name), 2)
    dense = holder.draw(arguments)
    out, record = holder.sparse("all", arguments)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    assert record["fallbacks"] == [] and record["calls"]["dense"] == 0
    grid = record["grid"]
    assert (grid["frames"], grid["height"], grid["width"]) == grid_of(name)
    assert (grid["text"] > 0) == (name in JOINT)
    beside = any(part["kind"] != "reference" for part in grid.get("parts", ()))
    # text that fills no block is taken behind sound and history
    assert record["position"] == ("none" if name not in JOINT else "last" if beside else family.text_position)
    assert record["cache"]["computed_steps"] == [1]  # 500 of the schedule 900, 500, 100
    sparse = len([path for path, _ in holder.transformer.named_modules() if family.is_self_attention(path)])
    assert record["calls"]["sparse"] == sparse * (2 if name == "mochi" else 1)  # it calls once a sample


@pytest.mark.parametrize("name", ABLE)
def test_a_mask_along_an_axis_keeps_a_change_where_it_was_made(name, holders):
    holder, tiny, grid = holders(name), TINY[name], grid_of(name)
    for axis, rule in enumerate(("frame", "row", "column")):
        if grid[axis] == 1:
            continue
        arguments = tiny.arguments(grid, 1)
        hit = torch.zeros(grid, dtype=torch.bool)
        hit.select(axis, 1).fill_(True)
        latents = find_family(name).latents
        moved = arguments[latents][0] if tiny.axes == "list" else arguments[latents]
        patch = tiny.patch
        moved = torch.where(spread(hit, tiny.axes, patch, tiny.ahead), moved + noise(*moved.shape), moved)
        other = arguments | {latents: [moved] if tiny.axes == "list" else moved}
        before, record = holder.sparse(rule, arguments)
        after, _ = holder.sparse(rule, other)
        assert record["fallbacks"] == [] and record["calls"]["sparse"] > 0
        found = changed(before, after, tiny.axes, patch, grid, tiny.ahead)
        assert torch.equal(found, hit), f"{rule}: {found.sum()} tokens changed, not {hit.sum()}"
        dense = changed(holder.draw(arguments), holder.draw(other), tiny.axes, patch, grid, tiny.ahead)
        assert dense.all()  # everywhere


def of_other_text(name: str, arguments: dict) -> dict:
    """The same arguments with other text."""

    def other(value):
        return [other(x) for x in value] if isinstance(value, list) else value + noise(*value.shape)

    return arguments | {text: other(arguments[text]) for text in TINY[name].text}


@pytest.mark.parametrize("name", [name for name in JOINT if name not in CAUSAL])
def test_text_reaches_the_picture_only_from_where_the_record_has_it(name, holders, request):
    holder, tiny = holders(name), TINY[name]
    arguments = tiny.arguments(grid_of(name), 1)
    changed = of_other_text(name, arguments)
    if tiny.pools:
        module = holder.transformer.get_submodule(tiny.pools)
        hook = module.register_forward_hook(lambda module, given, out: (torch.zeros_like(out[0]), *out[1:]))
        request.addfinalizer(hook.remove)
    drawn = {
        rule: [holder.sparse(rule, given)[0][:, tiny.ahead :] for given in (arguments, changed)]
        for rule in ("apart", "all")
    }
    assert torch.equal(*drawn["apart"]) and not torch.equal(*drawn["all"])


@pytest.mark.parametrize("name", CAUSAL)
def test_text_that_is_causal_reaches_the_picture_whatever_a_method_keeps(name, holders):
    holder, arguments = holders(name), TINY[name].arguments(grid_of(name), 1)
    changed = of_other_text(name, arguments)
    for rule in ("apart", "row", "all"):
        (before, record), (after, _) = (holder.sparse(rule, given) for given in (arguments, changed))
        assert not torch.equal(before, after) and record["sparsity"]["by_parts"]["picture-text"] == 1, rule
    kept = record["sparsity"]["pairs_by_parts"]  # text's own rows are dense, and in no budget
    assert set(kept) == {"picture-picture", "picture-text"}


@pytest.mark.parametrize("name", KEYS_ALONE)
def test_every_query_sees_text_that_is_keys_alone_and_no_budget_counts_it(name, holders):
    grid = (1, 24, 20) if find_family(name).draws == "image" else (3, 12, 16)
    holder, tiny, arguments = holders(name), TINY[name], TINY[name].arguments(grid, 2)
    dense = holder.draw(arguments)
    for sparsity in (0.0, 0.5, 0.8):
        out, record = holder.run("draft", arguments, sparsity, block_size=64)
        assert torch.allclose(out, dense, rtol=1e-4, atol=1e-5) == (sparsity == 0) and record["fallbacks"] == []
        kept, of = record["sparsity"]["by_parts"], record["sparsity"]["pairs_by_parts"]
        assert kept.pop("picture-picture") == pytest.approx(1 - sparsity, abs=0.03)
        assert "picture-text" in kept and kept == pytest.approx(dict.fromkeys(kept, 1.0))
        samples = 1 if name == "cosmos-3" else 2
        shown = sum((TEXT, TEXT - 3)[:samples]) / samples  # the second sample's text is shorter
        assert of["picture-text"] / of["picture-picture"] == pytest.approx(shown / math.prod(grid))
    kinds = [part.kind for part in find_family(name).layout(holder.transformer.config, arguments.get).parts]
    assert (kinds.index("text") < kinds.index("picture")) == (find_family(name).text_position == "keys first")
    (text,) = tiny.text
    before, _ = holder.sparse("row", arguments)
    for place in (0, TEXT - 1):
        given = arguments[text].clone()
        given.view(samples, TEXT, -1)[-1, place] += 1
        out, _ = holder.sparse("row", arguments | {text: given})
        assert torch.equal(out[-1], before[-1]) == (samples == 2 and place > 0)  # padding reaches nothing
        assert samples == 1 or torch.equal(out[0], before[0])


@pytest.mark.parametrize("name", ABLE)
def test_restore_is_bit_identical(name, holders):
    holder, family = holders(name), find_family(name)
    arguments = TINY[name].arguments(grid_of(name), 2)

    def state():
        modules = holder.transformer.named_modules()
        return {path: (sorted(m.__dict__), id(m.__dict__.get("processor"))) for path, m in modules}

    before, dense = state(), holder.draw(arguments)
    out, _ = holder.sparse("apart" if name in JOINT else "row", arguments)
    assert not torch.equal(out, dense)
    assert state() == before and torch.equal(holder.draw(arguments), dense)
    processors = [m.processor for path, m in holder.transformer.named_modules() if family.is_self_attention(path)]
    assert processors and {names_backend(p) for p in processors} == {family.way == "backend"}


@pytest.mark.parametrize("name", [*ABLE, *UNABLE])
def test_diffusers_has_the_class_of_the_record(name):
    assert issubclass(getattr(diffusers, find_family(name).transformer), torch.nn.Module)


@pytest.mark.parametrize("name", UNABLE)
def test_a_family_that_cannot_run_sparse_says_why(name):
    family = find_family(name)
    pipe = types.SimpleNamespace(transformer=type(family.transformer, (torch.nn.Module,), {})())
    with pytest.raises(BadInput) as error:
        attach(pipe, Config())
    assert family.name in str(error.value) and family.why_not in str(error.value)


def test_every_family_is_in_the_table_of_tiny_models_or_says_why_not():
    assert set(TINY) == set(ABLE)
