"""Spending a budget of pairs on scored blocks: what it comes to, and what is kept for it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dittools.kernels.masks.block_mask import Partition
from dittools.selection.budget import head_levels, select_topk_blocks

SHAPES = {"even": (1024, 64), "ragged": (1000, 64), "long": (4099, 128)}


def pairs(keep, query, key):
    return (keep * query[..., :, None] * key[..., None, :]).sum((-1, -2)) / (query.sum(-1) * key.sum(-1))


def drawn(lanes, query, key, seed=0):
    return torch.rand(*lanes, query, key, generator=torch.Generator().manual_seed(seed)) ** 4


@pytest.mark.parametrize("ranking", ["score", "cumulative"])
@pytest.mark.parametrize("scope", ["row", "head", "layer"])
@pytest.mark.parametrize("density", [0.1, 0.2, 0.5, 0.8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_asked_share_of_pairs_is_kept(shape, density, scope, ranking):
    sizes = Partition(*SHAPES[shape]).sizes()
    keep = select_topk_blocks(
        drawn((2, 3), len(sizes), len(sizes)), sizes, sizes, density, scope=scope, ranking=ranking
    )
    kept = pairs(keep, sizes, sizes)
    # Below one key block a row nothing can be skipped any more.
    least = max(density, 1 / len(sizes))
    found = kept if scope != "layer" else kept.mean()
    assert (found - least).abs().max() < 0.02
    assert keep.any(-1).all()


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 12),
    density=st.floats(0.01, 1),
    scope=st.sampled_from(["row", "head", "layer"]),
    seed=st.integers(0, 99),
)
def test_what_is_kept_scores_no_less_than_what_is_not(rows, columns, density, scope, seed):
    made = torch.Generator().manual_seed(seed)
    query, key = torch.randint(0, 9, (rows,), generator=made), torch.randint(0, 9, (columns,), generator=made)
    query[0] += 1
    key[0] += 1
    scores = torch.randint(0, 5, (1, 2, rows, columns), generator=made).float()
    keep = select_topk_blocks(scores, query, key, density, scope=scope)
    assert (keep & (key > 0)).any(-1).all()
    best = torch.zeros_like(keep).scatter_(-1, (scores + 9 * (key > 0)).argmax(-1, keepdim=True), True)
    for b, h in ((0, 0), (0, 1)):
        groups = [(m, slice(m, m + 1)) for m in range(rows)] if scope == "row" else [(None, slice(None))]
        for _, part in groups:
            mine, kept = scores[b, h, part], keep[b, h, part]
            free = kept & ~best[b, h, part]
            if free.any() and (~kept).any():
                assert mine[free].min() >= mine[~kept].max()


def test_variable_sizes_of_every_head_count_what_they_hold():
    made = torch.Generator().manual_seed(1)
    query, key = (torch.randint(0, 60, (2, 3, n), generator=made) for n in (40, 90))
    for scope in ("row", "head", "layer"):
        keep = select_topk_blocks(torch.rand(2, 3, 40, 90, generator=made), query, key, 0.3, scope=scope)
        kept = pairs(keep, query.double(), key.double())
        assert ((kept if scope != "layer" else kept.mean()) - 0.3).abs().max() < 0.02, scope


def test_forced_blocks_are_kept_and_the_rest_pay_for_them():
    sizes = Partition(2000, 50).sizes()
    force = torch.zeros(1, 1, 40, 40, dtype=torch.bool)
    force[..., :3, :] = True  # three rows stay dense
    force[..., :, 0] = True
    for scope in ("row", "head", "layer"):
        keep = select_topk_blocks(drawn((1, 2), 40, 40), sizes, sizes, 0.3, scope=scope, force=force)
        assert (keep | ~force).all()
        assert (pairs(keep, sizes, sizes) - 0.3).abs().max() < 0.02, scope


def test_a_head_with_more_to_gain_gets_more_of_a_layers_budget():
    scores = drawn((1, 2), 30, 30)
    scores[:, 1] *= 0.1
    sizes = torch.full((30,), 64)
    kept = pairs(select_topk_blocks(scores, sizes, sizes, 0.2, scope="layer"), sizes, sizes)[0]
    assert kept[0] > 2 * kept[1] and kept.mean() == pytest.approx(0.2, abs=0.02)


def test_cumulative_ranking_gives_every_row_the_nucleus_of_one_p():
    made = torch.Generator().manual_seed(3)
    flat = torch.rand(1, 1, 20, 50, generator=made) * torch.linspace(0, 8, 20)[:, None]
    scores = flat.softmax(-1)
    sizes = torch.full((50,), 64)
    keep = select_topk_blocks(scores, torch.full((20,), 64), sizes, 0.4, scope="head", ranking="cumulative")
    held = (scores * keep).sum(-1).flatten()
    last = torch.where(keep, scores, torch.inf).amin(-1).flatten()
    assert (held - last).max() <= held.min() + 1e-5, "one row stopped short of the others"
    assert keep.sum(-1).flatten()[0] > 2 * keep.sum(-1).flatten()[-1], "flat rows need more blocks"


@pytest.mark.parametrize("scope", ["head", "layer"])
@pytest.mark.parametrize("kind", ["even", "sharp", "zeros", "one block"])
@pytest.mark.parametrize("density", [0.05, 0.3, 0.77, 1.0])
def test_a_common_share_is_the_one_that_sorting_everything_finds(scope, kind, density):
    made = torch.Generator().manual_seed(3)
    sharpness = {"even": 0.1, "sharp": 4.0, "zeros": 1.0, "one block": 30.0}[kind]
    scores = (torch.randn(2, 3, 9, 17, generator=made) * sharpness).softmax(-1)
    if kind == "zeros":
        scores = scores * (torch.rand(scores.shape, generator=made) < 0.5)
    queries, keys = torch.full((9,), 16), torch.full((17,), 16)
    queries[-1], keys[-1] = 5, 3
    force = torch.rand(9, 17, generator=made) < 0.1
    found = select_topk_blocks(scores, queries, keys, density, scope=scope, ranking="cumulative", force=force)
    # The definition: every block after the share that better ones of its row hold, all of a scope in one line.
    must = force | ((torch.arange(17) == scores.argmax(-1, keepdim=True)) & ~force.any(-1, keepdim=True))
    order = scores.masked_fill(must, torch.inf).argsort(dim=-1, descending=True, stable=True)
    held = scores.gather(-1, order)
    share = (held.cumsum(-1) - held) / held.sum(-1, keepdim=True)
    share = torch.empty_like(share).scatter_(-1, order, share).masked_fill(must, -1)
    weight = (queries[:, None] * keys).double().expand(share.shape)
    lanes = {"head": 2, "layer": 1}[scope]
    line = share.flatten(lanes).argsort(dim=-1, stable=True)
    spent = weight.flatten(lanes).gather(-1, line)
    kept = spent.cumsum(-1) - spent / 2 < density * weight.flatten(lanes).sum(-1, keepdim=True)
    want = torch.zeros_like(must).flatten(lanes).scatter_(-1, line, kept).view_as(must) | must
    if kind in ("even", "sharp"):
        assert torch.equal(found, want)
    # Blocks that hold nothing are alike: which of them are kept does not matter, how many does.
    pairs = [(x * weight).sum((-1, -2) if scope == "head" else (-1, -2, -3)) for x in (found, want)]
    torch.testing.assert_close(*pairs, rtol=0, atol=16 * 16)
    assert torch.equal((found & (scores > 1e-6)) | must, (want & (scores > 1e-6)) | must)


def test_wrong_settings_are_said():
    scores, sizes = torch.rand(1, 1, 4, 4), torch.ones(4)
    for options, word in (
        ({"density": 0.0}, "density"),
        ({"density": 0.5, "scope": "all"}, "row, head, layer"),
        ({"density": 0.5, "ranking": "best"}, "score, cumulative"),
    ):
        with pytest.raises(ValueError, match=word):
            select_topk_blocks(scores, sizes, sizes, **options)


def test_three_levels_are_those_of_the_paper_and_leave_the_mean():
    recall = torch.tensor([[0.95, 0.3, 0.85, 0.7, 0.6, 0.1]])
    torch.testing.assert_close(head_levels(recall, 0.2), torch.tensor([[0.1, 0.3, 0.1, 0.2, 0.2, 0.3]]))
    # More sure heads than half: half give and half get. None: all alike.
    torch.testing.assert_close(
        head_levels(torch.full((1, 5), 0.9), 0.4).sort().values[0, [0, 1, 2, 3, 4]],
        torch.tensor([0.2, 0.2, 0.4, 0.6, 0.6]),
    )
    assert (head_levels(torch.full((2, 4), 0.5), 0.3) == 0.3).all()
    high = head_levels(recall, 0.8)
    assert high.max() <= 1 and high.mean().item() == pytest.approx(0.8)
    assert (head_levels(recall, 1.0) == 1).all()


def test_adaptive_budgets_move_pairs_from_sure_heads_to_the_others():
    made = torch.Generator().manual_seed(2)
    scores = torch.rand(1, 4, 40, 40, generator=made)
    scores[:, :2] = scores[:, :2] ** 30
    sizes = Partition(2500, 64).sizes()
    kept = pairs(select_topk_blocks(scores, sizes, sizes, 0.2, scope="adaptive"), sizes, sizes)[0]
    assert kept.tolist() == pytest.approx([0.1, 0.1, 0.3, 0.3], abs=0.01)


@pytest.mark.parametrize("scope", ["row", "head"])
def test_each_head_may_have_a_density_of_its_own(scope):
    sizes = Partition(2500, 64).sizes()
    asked = torch.tensor([[0.1, 0.5, 1.0]])
    keep = select_topk_blocks(drawn((2, 3), 40, 40), sizes, sizes, asked, scope=scope)
    assert (pairs(keep, sizes, sizes) - asked).abs().max() < 0.01


def test_a_row_with_something_forced_need_not_keep_its_best_too():
    sizes = torch.full((20,), 64)
    force = torch.eye(20, dtype=torch.bool)[None, None]
    keep = select_topk_blocks(drawn((1, 1), 20, 20), sizes, sizes, 0.05, scope="head", force=force)
    assert torch.equal(keep, force)
