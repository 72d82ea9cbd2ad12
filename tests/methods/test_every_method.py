"""What every method promises, whatever it keeps: full and asked budgets, text, ragged ends, options."""

import json

import pytest
import torch

from dittools import methods
from dittools.attention import attend
from dittools.config import Config
from dittools.kinds import kept_by_kind, kinds_of
from dittools.methods import METHODS, AttentionCall
from dittools.methods.static import Static, _known
from dittools.tokens import Part, TokenGrid

# No part is a whole number of blocks, and text and references are more than a picture row may see of everything.
PARTS = (Part.of("history", 2, 6, 9), Part.of("reference", 1, 13, 9), Part.of("reference", 1, 5, 8))
GRIDS = {
    "video": TokenGrid(9, 16, 16),
    "ragged": TokenGrid(7, 13, 11),
    "primes": TokenGrid(5, 7, 11),
    "text first": TokenGrid(6, 9, 11, text=5, text_position="first"),
    "text last": TokenGrid(6, 9, 11, text=5, text_position="last"),
    "image": TokenGrid(1, 31, 37),
    "parts": TokenGrid(3, 13, 16, 37, "first", PARTS),
    "video and parts": TokenGrid(5, 9, 11, 300, "last", (Part.of("reference", 1, 18, 22),)),
}
# What these methods promise beyond even blocks and without a profile: test_clusters.py and test_profiled.py; the masks
# of models that were trained with them: tests/pipelines/test_own_masks.py.
ELSEWHERE = {
    "dense",
    "svg2",
    "svg_ear",
    "trained",
    *(name for name, cls in METHODS.items() if cls.profile_use == "needed"),
}
NAMES = [name for name in METHODS if name not in ELSEWHERE]
# One set of native settings a method, in the form that a JSON file has them.
SET = {
    "svg": {"probe_rows": 20, "sink": False},
    "gna": {"window": [3, 5, 4], "stride": [1, 2, 2], "dilation": 1, "tile": [2, 4, 2]},
    "sta": {"window": [3, 1, 3], "tile": 2},
    "clear": {"radius": 3.5},
    "radial": {"decay": 0.2, "sink": True},
    "todo": {"stride": 2, "pick": "middle", "bias": False},
    "attention_tile": {"references": 2},
    "adaspa": {"scope": "row", "order": "cubes"},
    "draft": {"scope": "row", "order": "columns"},
    "jenga": {"top_p": 0.6, "order": "raster"},
    "nabla": {"top_p": 0.5, "window": [3, 1, 1]},
    "sparge": {"tau": 0.5, "sink": True},
    "sparsed": {"scope": "head", "order": "curve"},
    "vmoba": {"tau": 0.4},
    "xattention": {"stride": 4, "order": "patches"},
    "oracle": {"scope": "layer", "order": "cubes"},
    "random": {"order": "curve"},
}
WRONG = {
    "svg": ("probe_rows", 0),
    "gna": ("stride", [1, 2]),
    "sta": ("tile", 0),
    "clear": ("radius", -1),
    "radial": ("decay", "wide"),
    "todo": ("stride", 2.5),
    "attention_tile": ("references", -1),
    "adaspa": ("search_at", 2.0),
    "draft": ("scope", "all"),
    "jenga": ("top_p", 1.5),
    "nabla": ("window", [2, 3, 3]),
    "sparge": ("tau", 0),
    "sparsed": ("rows", -1),
    "vmoba": ("tau", 2.0),
    "xattention": ("stride", 3),
    "oracle": ("scope", "all"),
    "random": ("order", "spiral"),
}


def tensors(grid, heads=2):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, grid.tokens, heads, 16, generator=generator) for _ in range(3)]


def call(grid, sparsity, block_size=16):
    return AttentionCall(1, 4, "cond", 3, 10, grid, sparsity, 0.25, torch.Generator().manual_seed(0), block_size)


def planned(name, grid, sparsity, options=None, block_size=16):
    method = methods.create(name, options or {})
    if problem := method.why_not(grid, block_size):
        assert name in problem and "\n" not in problem
        pytest.skip(problem)
    q, k, v = tensors(grid)
    return method.plan(q, k, v, call(grid, sparsity, block_size)), (q, k, v)


def dense(q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), scale=0.25)


def seen(plan, grid, batch, head):
    """[S, S] bool in token coordinates, from the plan alone."""
    tokens = torch.arange(grid.tokens)
    if plan.keys is not None:
        kept = torch.zeros(grid.tokens, grid.tokens, dtype=torch.bool)
        kept[plan.keys.queries, plan.keys.tokens] = True
        for run in plan.keys.others:
            kept[run] = True
        return kept
    lanes = [0 if x is None or x.shape[i] == 1 else (batch, head)[i] for x in (plan.order,) for i in (0, 1)]
    order = tokens if plan.order is None else plan.order[lanes[0], lanes[1]].long()
    kept = torch.empty(grid.tokens, grid.tokens, dtype=torch.bool)
    kept[order[:, None], order] = plan.mask.to_tokens(batch, head, tokens)
    return kept


def test_every_method_has_a_row_here():
    assert set(SET) == set(WRONG) == set(NAMES)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_skipped_is_dense_attention(name, grid):
    plan, (q, k, v) = planned(name, GRIDS[grid], 0.0)
    assert plan.mask.keep.all() and (plan.density() == 1).all()
    out, lse = attend(q, k, v, plan, 0.25, return_lse=True)
    torch.testing.assert_close(out.transpose(1, 2), dense(q, k, v), rtol=1e-4, atol=1e-5)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.25
    torch.testing.assert_close(lse, logits.logsumexp(-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_asked_sparsity_is_met_and_every_row_keeps_something(name, grid, sparsity):
    grid = GRIDS[grid]
    plan, _ = planned(name, grid, sparsity)
    kept = torch.stack([seen(plan, grid, b, h) for b in range(2) for h in range(2)])
    found = 1 - kept[:, grid.video_slice, grid.video_slice].double().mean((-1, -2))
    assert kept.any(-1).all() and plan.mask.keep.any(-1).all()
    assert (found - sparsity).abs().max() <= 0.02
    reported = plan.density().expand(2, 2).flatten()
    assert (reported - kept.double().mean((-1, -2))).abs().max() < 1e-5, "what is reported is what is kept"
    kinds = {kind: torch.zeros(grid.tokens, dtype=torch.bool) for kind in kinds_of(grid)}
    for part, at in grid.placed:
        kinds[part.kind][at] = True
    if len(kinds) > 1:
        for i, rows in enumerate(kinds.values()):
            for j, columns in enumerate(kinds.values()):
                counted = kept[:, rows][:, :, columns].double().mean()
                assert kept_by_kind(plan, grid)[i, j].item() == pytest.approx(counted.item(), abs=1e-5)


@pytest.mark.parametrize("grid", ["text first", "text last", "parts"])
@pytest.mark.parametrize("name", NAMES)
def test_text_sees_all_and_is_seen_by_all(name, grid):
    grid = GRIDS[grid]
    plan, _ = planned(name, grid, 0.9)
    for head in range(2):
        kept = seen(plan, grid, 1, head)
        assert kept[grid.text_slice].all() and kept[:, grid.text_slice].all()


@pytest.mark.parametrize("options", ["auto", "set"])
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name", NAMES)
def test_the_output_is_the_softmax_over_what_is_kept(name, grid, options):
    grid = GRIDS[grid]
    plan, (q, k, v) = planned(name, grid, 0.7, SET[name] if options == "set" else None)
    out, _ = attend(q, k, v, plan, 0.25)
    assert out.isfinite().all() and out.shape == q.shape
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.25
    if plan.keys is not None and plan.keys.bias is not None:
        each = plan.keys.bias.flatten().repeat_interleave(plan.mask.key.size)[: len(plan.keys.tokens)]
        logits[:, :, plan.keys.queries, plan.keys.tokens] += each
    kept = torch.stack([torch.stack([seen(plan, grid, b, h) for h in range(2)]) for b in range(2)])
    if plan.keys is not None and plan.keys.runs is not None:  # means stand in for tokens of theirs
        few = plan.keys.take(k, v)
        mean_logits = torch.einsum("bqhd,bkhd->bhqk", q, few[0]) * 0.25
        mean_logits += 0 if plan.keys.bias is None else each
        own = (mean_logits.softmax(-1) @ few[1].transpose(1, 2))[:, :, plan.keys.queries]
    want = logits.masked_fill(~kept, -torch.inf).softmax(-1) @ v.transpose(1, 2)
    if plan.keys is not None and plan.keys.runs is not None:
        want[:, :, plan.keys.queries] = own
    torch.testing.assert_close(out.transpose(1, 2), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_call_twice_gives_the_same_pairs(name):
    (one, _), (two, _) = (planned(name, GRIDS["ragged"], 0.7) for _ in range(2))
    assert torch.equal(one.mask.keep, two.mask.keep)
    assert (one.order is None) == (two.order is None)
    assert one.order is None or torch.equal(one.order, two.order)
    assert one.notes == two.notes


@pytest.mark.parametrize("name", METHODS)
def test_options_that_differ_from_the_defaults_make_the_same_method_again(name):
    assert methods.create(name, {}).changed_options() == {}
    method = methods.create(name, SET.get(name, {}))
    changed = json.loads(json.dumps(method.changed_options()))
    assert methods.create(name, changed) == method
    assert all(methods.create(name, {option: value}).changed_options() for option, value in changed.items())


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_a_config_file_and_change_the_pairs(name):
    config = Config(method=name, sparsity=0.7, options=SET[name])
    again = Config.from_json(config.to_json())
    assert again == config and json.loads(config.to_json())["options"] == SET[name]
    (by_default, _), (asked, _) = (planned(name, GRIDS["video"], 0.7, options) for options in (None, again.options))
    pairs = [seen(plan, GRIDS["video"], 0, 0) for plan in (by_default, asked)]
    assert not torch.equal(*pairs)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_options_are_said_in_one_line(name):
    option, value = WRONG[name]
    with pytest.raises(ValueError, match=option) as error:
        Config(method=name, options={option: value})
    assert "\n" not in str(error.value) and str(value) in str(error.value)
    with pytest.raises(ValueError, match=f"option of method {name}"):
        Config(method=name, options={"no_such_option": 1})


@pytest.mark.parametrize("name", NAMES)
def test_a_grid_that_is_too_small_is_refused(name):
    problem = METHODS[name]().why_not(TokenGrid(2, 3, 5), 16)
    assert "at least 4 blocks of 16" in problem and problem.startswith(name)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_what_it_sets(name):
    assert all(text for _, text in methods.options(name).values())


@pytest.mark.parametrize("name", [name for name in NAMES if issubclass(METHODS[name], Static)])
def test_a_pattern_is_found_again_in_a_later_run_and_only_for_the_very_same_question(name, monkeypatch):
    made = []
    kind = METHODS[name]
    pattern = kind.pattern
    monkeypatch.setattr(kind, "pattern", lambda self, *question: made.append(question) or pattern(self, *question))
    _known.cache_clear()
    first, _ = planned(name, GRIDS["video"], 0.7)
    again, _ = planned(name, GRIDS["video"], 0.7)
    assert len(made) == 1 and torch.equal(again.mask.keep, first.mask.keep)
    for sparsity, block_size in ((0.6, 16), (0.7, 32)):
        planned(name, GRIDS["video"], sparsity, block_size=block_size)
    assert len(made) == 3 == len(set(made))
