"""What is particular to each recipe, against its paper's rule written out."""

import pytest
import torch

from dittools import methods
from dittools.selection.neighbours import contact, touching, window
from dittools.selection.nucleus import min_max_nucleus, within_mass
from dittools.selection.ordered_blocks import cut_into_blocks
from dittools.selection.pooled import block_softmax, pooled_logits
from dittools.tokens import TokenGrid
from tests.methods.scenes import BLOCK, DIM, GRIDS, call, kept_mass, scene

GRID = GRIDS["ragged"]
SCALE = DIM**-0.5


def plan_of(name, tensors, asked, **options):
    return methods.create(name, options).plan(*tensors, asked)


# draft


def test_draft_keeps_the_brightest_of_a_heads_pooled_map():
    grid = TokenGrid(6, 16, 16)  # patches of 4 x 4 fit
    q, k, v = scene(grid)
    plan = plan_of("draft", (q, k, v), call(grid, 0.7))
    cut = (x.view(1, 6, 4, 4, 4, 4, 4, DIM).mean((3, 5)).reshape(1, 96, 4, DIM) for x in (q, k))
    draft = (torch.einsum("bmhd,bnhd->bhmn", *cut) * SCALE).softmax(-1)
    for h in range(4):
        kept, scores = plan.mask.keep[0, h], draft[0, h]
        off = ~torch.eye(96, dtype=torch.bool)
        assert kept.diagonal().all()
        assert scores[kept & off].min() >= scores[~kept].max() * 0.9999
    assert plan.mask.density().sub(0.3).abs().max() < 0.001


# jenga


def test_jenga_keeps_all_neighbours_where_half_the_budget_pays_and_the_best_of_the_rest():
    tensors = scene(GRID)
    plan = plan_of("jenga", tensors, call(GRID, 0.4))
    blocks = cut_into_blocks(GRID, BLOCK, "curve")
    near = contact(GRID, blocks, touching()) > 0
    assert (near.sum() / near.numel()) < 0.3 and plan.notes == ()
    assert plan.mask.keep[:, :, near].all()
    scores = block_softmax(pooled_logits(*tensors[:2], blocks, SCALE), blocks)
    kept = plan.mask.keep & ~near
    worst = torch.where(kept, scores, torch.inf).amin(-1)
    assert (worst >= torch.where(plan.mask.keep, 0.0, scores).amax(-1)).all()


def test_jenga_lets_blocks_of_the_first_frame_see_each_other_when_asked():
    grid = TokenGrid(24, 8, 8)
    blocks = cut_into_blocks(grid, BLOCK, "curve")
    first = blocks.block_of_token[: grid.frame].unique()
    tensors = scene(grid)
    asked, plain = (plan_of("jenga", tensors, call(grid, 0.3), first_frame=f).mask for f in (True, False))
    assert asked.keep[:, :, first][..., first].all() and not plain.keep[:, :, first][..., first].all()
    assert asked.density().sub(0.7).abs().max() < 0.02


def test_jenga_with_top_p_keeps_the_larger_of_top_k_and_top_p_and_neighbours_on_top():
    tensors = scene(GRID)
    keep = plan_of("jenga", tensors, call(GRID, 0.75), top_p=0.5).mask.keep
    blocks = cut_into_blocks(GRID, BLOCK, "curve")
    near = contact(GRID, blocks, touching()) > 0
    scores = block_softmax(pooled_logits(*tensors[:2], blocks, SCALE), blocks)
    count = blocks.partition.count
    for h in range(4):
        for m in range(count):
            best = scores[0, h, m].argsort(descending=True, stable=True)
            within = int((scores[0, h, m][best].cumsum(0) < 0.5).sum())
            need = max(int(0.25 * count), within + 1)
            want = near[m].clone()
            want[best[:need]] = True
            assert (keep[0, h, m] != want).sum() <= 1, (h, m)  # a sum that meets p to the last digit


# nabla


def test_nabla_with_top_p_is_the_published_mask():
    grid = TokenGrid(5, 16, 12)  # patches of 4 x 4 fit
    q, k, v = scene(grid)
    keep = plan_of("nabla", (q, k, v), call(grid), top_p=0.7, window=[3, 1, 3]).mask.keep
    blocks = cut_into_blocks(grid, BLOCK, "patches")
    a, b = (x[:, blocks.order[0, 0].long()].unflatten(1, (-1, BLOCK)).mean(2).transpose(1, 2) for x in (q, k))
    shares, index = ((a @ b.transpose(-1, -2)) * SCALE).softmax(-1).sort(-1)
    nucleus = torch.zeros_like(keep).scatter(-1, index, shares.cumsum(-1) >= 1 - 0.7)
    near = contact(grid, blocks, window((1, 4, 4), (3, 1, 3))) > 0
    assert (keep != (nucleus | near)).float().mean() < 1e-3


# xattention


def test_xattention_with_tau_keeps_the_fewest_blocks_that_reach_it():
    from dittools.kernels.antidiagonal.dispatch import measure_antidiagonals

    q, k, v = scene(GRID)
    mass = measure_antidiagonals(q, k, cut_into_blocks(GRID, BLOCK, "raster").partition, 8, scale=SCALE)
    keep = plan_of("xattention", (q, k, v), call(GRID), tau=0.8).mask.keep
    held = (mass * keep).sum(-1)
    least = torch.where(keep, mass, torch.inf).amin(-1)
    assert (held >= 0.8 - 1e-5).all() and (held - least < 0.8 + 1e-5).all()
    assert (least >= torch.where(keep, 0.0, mass).amax(-1)).all()


# sparge


def mixed_blocks(grid):
    """A scene in which the tokens of block 3 of q and of block 5 of k are nothing alike."""
    q, k, v = (torch.randn(1, grid.tokens, 2, DIM, generator=torch.Generator().manual_seed(s)) for s in range(3))
    # Keys of a block are alike beside the mean of all keys, which does not count.
    places = torch.randn(1, -(-grid.tokens // BLOCK), 2, DIM, generator=torch.Generator().manual_seed(3))
    q, k = q * 0.1 + 1, k * 0.1 + places.repeat_interleave(BLOCK, 1)[:, : grid.tokens]
    signs = torch.tensor([1.0, -1.0]).repeat(BLOCK // 2)[:, None, None]
    q[:, 3 * BLOCK : 4 * BLOCK] *= signs
    k[:, 5 * BLOCK : 6 * BLOCK] *= signs
    return q, k, v


def test_sparge_with_tau_keeps_every_row_and_column_of_blocks_whose_tokens_differ():
    keep = plan_of("sparge", mixed_blocks(GRID), call(GRID), tau=0.3).mask.keep
    assert keep[:, :, 3].all() and keep[:, :, :, 5].all()
    others = torch.arange(keep.shape[-1])
    rest = keep[:, :, others != 3][..., others != 5]
    assert 0 < rest.float().mean() < 0.5
    # Without a gate nothing is forced.
    free = plan_of("sparge", mixed_blocks(GRID), call(GRID), tau=0.3, similarity=-1).mask.keep
    assert not free[:, :, 3].all() and not free[:, :, :, 5].all()


def test_sparge_within_a_budget_puts_blocks_whose_tokens_differ_first():
    asked = call(GRID, 0.8)
    plan = plan_of("sparge", mixed_blocks(GRID), asked, similarity=0.5)
    assert plan.mask.keep[..., 5].all()
    assert plan.mask.density().sub(0.2).abs().max() < 0.02
    sink = plan_of("sparge", mixed_blocks(GRID), asked, sink=True)
    assert sink.mask.keep[..., 0].all() and sink.mask.density().sub(0.2).abs().max() < 0.02


@pytest.mark.parametrize("options", [{}, {"tau": 0.8}, {"similarity": 0.4, "order": "curve"}], ids=str)
def test_sparge_does_not_see_a_vector_that_is_added_to_all_keys(options):
    q, k, v = mixed_blocks(GRID)
    plans = [plan_of("sparge", (q, k + move, v), call(GRID, 0.6), **options) for move in (0.0, 3.0, -40.0)]
    for plan in plans[1:]:
        assert (plan.mask.keep != plans[0].mask.keep).float().mean() < 0.001
    if options:  # whose gate tells blocks apart
        assert not torch.equal(plans[0].mask.keep, plan_of("sparge", (q, k, v), call(GRID, 0.6)).mask.keep)


def test_within_mass_leaves_out_the_block_that_crosses_and_keeps_one_at_least():
    scores = torch.tensor([[0.5, 0.1, 0.3, 0.1], [0.9, 0.05, 0.05, 0.0]])
    assert within_mass(scores, 0.85).tolist() == [[True, False, True, False], [True, False, False, False]]


# vmoba


def test_vmoba_goes_through_runs_columns_and_cubes_by_layer():
    grid = TokenGrid(4, 16, 16)
    tensors = scene(grid)
    at = grid.positions().double()
    extents = []
    for layer in range(6):
        order = plan_of("vmoba", tensors, call(grid, layer=layer)).order
        block = at if order is None else at[order[0, 0].long()]
        extents.append(tuple((block[:BLOCK].amax(0) - block[:BLOCK].amin(0) + 1).int().tolist()))
    assert extents[:3] == [(1, 1, 16), (4, 2, 2), (2, 2, 4)] and extents[3:] == extents[:3]


def test_vmoba_gates_by_bare_products_with_key_means_over_a_whole_head():
    q, k, v = scene(GRID)
    plan = plan_of("vmoba", (q, k, v), call(GRID, 0.7, layer=0), scope="head")
    queries, keys = (torch.stack([b.mean(1) for b in x.split(BLOCK, 1)], 2) for x in (q, k))  # [B, H, M, D]
    gate = queries @ keys.transpose(-1, -2)
    own = torch.eye(gate.shape[-1], dtype=torch.bool)
    kept = plan.mask.keep
    assert kept.diagonal(dim1=-2, dim2=-1).all()
    free = torch.where(kept & ~own, gate, torch.inf).flatten(2).amin(-1)
    assert (free >= torch.where(kept, -torch.inf, gate).flatten(2).amax(-1) - 1e-5).all()


@pytest.mark.parametrize("scope", ["row", "head", "layer"])
def test_vmobas_threshold_adds_the_best_until_their_normalised_sum_reaches_it_and_one_more_at_least(scope):
    made = torch.Generator().manual_seed(4)
    gate = torch.randn(2, 3, 6, 7, generator=made)
    own = torch.eye(6, 7, dtype=torch.bool)
    pools = {"row": (12 * 3, 7), "head": (6, 42), "layer": (2, 126)}[scope]
    for p in (0.01, 0.25, 0.6, 1.0):
        found = min_max_nucleus(gate, p, scope, own[None, None]).reshape(pools)
        for values, forced, kept in zip(gate.reshape(pools), own.expand(gate.shape).reshape(pools), found, strict=True):
            norm = ((values - values.min()) / (values.max() - values.min())).double()
            want, total = forced.clone(), norm[forced].sum()
            for i in norm.masked_fill(forced, -1).argsort(descending=True).tolist():
                if forced[i] or (want.sum() > forced.sum() and total >= p * norm.sum() - 1e-9):
                    break
                want[i] = True
                total += norm[i]
            assert torch.equal(kept, want | (p == 1)), (scope, p)


# adaspa and sparsed


class Searched:
    """Counts the searches and what they were given."""

    def __init__(self, monkeypatch, module):
        self.calls = []
        measure = module.block_mass

        def counted(*args, **options):
            self.calls.append(options)
            return measure(*args, **options)

        monkeypatch.setattr(module, "block_mass", counted)


def run(method, tensors, steps, state, **asked):
    return [method.plan(*tensors, call(GRID, step=s, state=state, **asked)) for s in steps]


def test_adaspa_searches_when_asked_and_reuses_the_lse_of_the_first(monkeypatch):
    from dittools.methods import adaspa

    searched, state = Searched(monkeypatch, adaspa), {}
    method, tensors = adaspa.AdaSpa(), scene(GRID)
    early = run(method, tensors, range(2, 6), state)  # of 10 steps: a search in step 2
    assert len(searched.calls) == 1 and all(torch.equal(p.mask.keep, early[0].mask.keep) for p in early)
    lse = searched.calls[0]["lse"]
    later = run(method, [1.02 * x for x in tensors], range(6, 10), state)  # and one in step 6
    assert len(searched.calls) == 2 and searched.calls[1]["lse"] is lse
    assert (later[0].mask.keep != early[0].mask.keep).any()
    assert all(torch.equal(p.mask.keep, later[0].mask.keep) for p in later)
    # A step that a cache skips puts the search off, and a first sparse step after both does one.
    state.clear()
    run(method, tensors, [5, 7, 9], state)
    assert len(searched.calls) == 4
    state.clear()
    run(method, tensors, [8, 9], state)
    assert len(searched.calls) == 5
    # Other videos in the batch: everything anew.
    run(method, scene(GRID, batches=2), [9], state)
    assert len(searched.calls) == 6 and searched.calls[5]["lse"].shape[0] == 2


def test_adaspa_without_the_cached_lse_finds_nearly_the_same(monkeypatch):
    state, fresh = {}, {}
    tensors, moved = scene(GRID), scene(GRID, seed=0)
    moved = (moved[0] * 1.05, *moved[1:])
    for kept, method in ((state, "reuse"), (fresh, "anew")):
        plans = []
        for step, x in ((2, tensors), (6, moved)):
            plans.append(plan_of("adaspa", x, call(GRID, step=step, state=kept), reuse_lse=method == "reuse"))
    assert "lse" in state and "lse" not in fresh
    a, b = (kept_mass(plan_of("adaspa", moved, call(GRID, step=9, state=s)), *moved[:2]).mean() for s in (state, fresh))
    assert abs(a - b) < 0.01


def test_adaspa_gives_heads_budgets_in_three_levels():
    density = plan_of("adaspa", scene(GRID), call(GRID, 0.8)).mask.density()[0]
    assert density.mean().item() == pytest.approx(0.2, abs=0.01)
    assert all(min(abs(d - level) for level in (0.1, 0.2, 0.3)) < 0.01 for d in density.tolist())
    assert density.max() > 0.25


def test_sparsed_measures_once_and_keeps_the_mask(monkeypatch):
    from dittools.methods import sparsed

    searched, state = Searched(monkeypatch, sparsed), {}
    first = run(sparsed.SparseD(), scene(GRID), [2], state)[0]
    later = run(sparsed.SparseD(), scene(GRID, seed=1), range(3, 10), state)
    assert len(searched.calls) == 1
    assert all(torch.equal(p.mask.keep, first.mask.keep) for p in later)
    assert state["keep"].numel() == 4 * 67 * 9  # a bit a block: 67 x 67 blocks, 4 heads


@pytest.mark.parametrize("name", ["adaspa", "sparsed"])
def test_looking_at_a_sample_of_queries_keeps_nearly_as_much(name):
    tensors = scene(GRID)
    all_rows, few = (kept_mass(plan_of(name, tensors, call(GRID), rows=r), *tensors[:2]).mean() for r in (0, 4))
    assert few < all_rows + 1e-4 and few > all_rows - 0.03


# yardsticks


def test_random_follows_the_seed_and_keeps_the_diagonal():
    tensors = scene(GRID)
    one, same, other = (plan_of("random", tensors, call(GRID, seed=s)).mask.keep for s in (1, 1, 2))
    assert torch.equal(one, same) and (one != other).any()
    assert one.diagonal(dim1=-2, dim2=-1).all()
