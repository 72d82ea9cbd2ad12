"""svg2 and svg_ear: clusters of alike tokens, what they spend, and what they carry from step to step."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dittools.attention import attend
from dittools.kernels.masks.block_mask import BlockMask, Partition
from dittools.kernels.masks.cluster_mask import ClusterMask, ClusterPartition
from dittools.methods import AttentionCall
from dittools.methods.base import Plan
from dittools.methods.svg2 import SVG2
from dittools.methods.svg_ear import SVGEAR, refill
from dittools.orders.clusters import Start, cluster_order
from dittools.scoped_cache import ScopedCache
from dittools.selection.budget import select_topk_blocks
from dittools.selection.clustered import centroid_mass, compensation_error
from dittools.tokens import TokenGrid
from tests.methods.scenes import shares

VIDEO = TokenGrid(5, 9, 11)
GRIDS = [VIDEO, TokenGrid(4, 8, 8, text=13, text_position="last"), TokenGrid(4, 8, 8, text=13, text_position="first")]
METHODS = [SVG2(), SVGEAR()]
by_name = pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)


def alike(grid, batches=1, heads=2, groups=12, spread=0.4, seed=0):
    """q, k, v in which tokens belong to groups that lie scattered over the sequence; another grouping in every head."""
    made = torch.Generator().manual_seed(seed)
    shape = (batches, grid.tokens, heads)
    group = torch.randint(0, groups, shape, generator=made)
    marks = torch.randn(groups, 64, generator=made) * 1.5
    q, k, v = (marks[group] + spread * torch.randn(*shape, 64, generator=made) for _ in range(3))
    return q, k, v


def call(grid=VIDEO, sparsity=0.7, state=None, step=3, seed=0, branch="cond", run_cache=None):
    """A call without a past, apart from the state and run cache it is given."""
    kept = {"branch_state": {} if state is None else state}
    kept["run_cache"] = ScopedCache() if run_cache is None else run_cache
    return AttentionCall(1, 4, branch, step, 10, grid, sparsity, 0.125, torch.Generator().manual_seed(seed), 64, **kept)


def dense(q, k, v, scale=0.125):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)


def error(found, wanted):
    return ((found - wanted).square().sum() / wanted.square().sum()).sqrt().item()


@by_name
@pytest.mark.parametrize("text", ["none", "first", "last"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_the_asked_share_is_skipped_in_every_head_of_every_batch(method, text, sparsity):
    grid = TokenGrid(6, 12, 13, text=0 if text == "none" else 21, text_position=text)
    found = 1 - shares(method.plan(*alike(grid, batches=2), call(grid, sparsity)), grid)
    assert found.shape == (2, 2) and found.mean() == pytest.approx(sparsity, abs=0.02)
    assert (found - sparsity).abs().max() <= 0.03  # clusters of a head are few here


@pytest.mark.parametrize("scope", ["head", "layer"])
def test_wider_scopes_spend_the_same_in_total(scope):
    plan = SVG2(scope=scope).plan(*alike(VIDEO, heads=3), call(sparsity=0.7))
    assert plan.mask.density().mean() == pytest.approx(0.3, abs=0.02)


@by_name
def test_at_full_budget_it_is_dense_attention(method):
    q, k, v = alike(GRIDS[1], batches=2)
    plan = method.plan(q, k, v, call(GRIDS[1], sparsity=0.0))
    torch.testing.assert_close(attend(q, k, v, plan, 0.125)[0], dense(q, k, v), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("grid", GRIDS[1:], ids=str)
@by_name
def test_text_is_one_cluster_at_its_place_and_stays_dense_both_ways(method, grid):
    q, k, v = alike(grid)
    plan = method.plan(q, k, v, call(grid, sparsity=0.85))
    at = 0 if grid.text_position == "first" else -1
    text = torch.arange(grid.tokens)[grid.text_slice]
    for order, side in ((plan.order, plan.mask.query), (plan.key_order, plan.mask.key)):
        assert (side.run_sizes[..., at] == grid.text).all()
        part = order[..., : grid.text] if at == 0 else order[..., -grid.text :]
        assert torch.equal(part, text.int().expand(part.shape))
        assert torch.equal(order.long().sort(-1).values, torch.arange(grid.tokens).expand(order.shape))
    assert plan.mask.keep[..., at, :].all() and plan.mask.keep[..., :, at].all()
    out, _ = attend(q, k, v, plan, 0.125)
    torch.testing.assert_close(out[:, text], dense(q, k, v)[:, text], atol=1e-5, rtol=1e-4)


@by_name
def test_it_finds_scattered_groups_that_blocks_of_neighbours_cannot(method):
    q, k, v = alike(VIDEO, spread=0.2)
    out, _ = attend(q, k, v, method.plan(q, k, v, call(sparsity=0.7)), 0.125)
    blocks = Partition(VIDEO.tokens, 16)
    mass = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 0.125).softmax(-1)
    mass = torch.stack([x.sum(-1) for x in mass.split(16, -1)], -1)
    mass = torch.stack([x.sum(-2) for x in mass.split(16, -2)], -2)
    best = BlockMask(select_topk_blocks(mass, blocks.sizes(), blocks.sizes(), 0.3), blocks, blocks)
    neighbours, _ = attend(q, k, v, Plan(None, best), 0.125)
    assert error(out, dense(q, k, v)) < 0.5 * error(neighbours, dense(q, k, v))


@by_name
def test_the_same_seed_gives_the_same_plan(method):
    q, k, v = alike(VIDEO)
    one, two = (method.plan(q, k, v, call(seed=5)) for _ in range(2))
    assert torch.equal(one.mask.keep, two.mask.keep) and torch.equal(one.key_order, two.key_order)
    other = method.plan(q, k, v, call(seed=6))
    assert not torch.equal(one.order, other.order)


def test_later_steps_start_from_where_clusters_stood():
    q, k, v = alike(VIDEO, spread=1.0)
    state = {}
    few = SVG2(first_iterations=1, iterations=1)

    def spread_of_keys():
        plan = few.plan(q, k, v, call(state=state))
        x = k.transpose(1, 2).gather(2, plan.key_order.long()[..., None].expand(-1, -1, -1, 64))
        label = plan.mask.key.labels()[..., None].expand_as(x)
        sums = torch.zeros(*x.shape[:2], plan.mask.key.count, 64).scatter_add_(2, label, x)
        means = sums / plan.mask.key.run_sizes.clamp_min(1)[..., None]
        return (x - means.gather(2, label)).square().mean().item()

    found = [spread_of_keys() for _ in range(4)]
    assert found[0] > found[1] > found[3]
    assert set(state) == {"query", "key"}


@by_name
@pytest.mark.parametrize("side", ["queries", "keys"])
def test_clusters_go_along_when_all_tokens_move_together(method, side):
    q, k, v = alike(VIDEO, spread=1.0)
    made = torch.Generator().manual_seed(1)
    state, still = {}, {}
    for step in range(4):
        moved = 20 * step * torch.randn(64, generator=made)
        plan = method.plan(q + moved * (side == "queries"), k + moved * (side == "keys"), v, call(state=state))
        stays = method.plan(q, k, v, call(state=still))
        for one, two in ((plan.mask.query, stays.mask.query), (plan.mask.key, stays.mask.key)):
            # Sums of larger numbers are rounded more: a token between two clusters may change sides.
            assert (one.run_sizes - two.run_sizes).abs().sum() <= 0.02 * one.run_sizes.sum()
    assert (plan.mask.key.run_sizes > 0).float().mean() > 0.9 and (plan.mask.query.run_sizes > 0).float().mean() > 0.9


def test_clusters_stay_where_they_are_while_tokens_move_less_than_these_are_apart():
    points = torch.tensor([[0.0, 0.0], [0, 1], [8, 0], [8, 1]])[None, None]
    start = Start.of(torch.tensor([[[0, 0.5], [8, 0.5], [99, 99]]]), torch.tensor([[2, 2, 0]]), 4)
    assert start.centre.tolist() == [[[4, 0.5]]] and start.spread.item() == 16
    for moved, goes in ((2.7, 0), (2.9, 1), (torch.nan, 0), (torch.inf, 0)):
        found = start.at(points + torch.tensor([0, moved]))
        torch.testing.assert_close(found - start.centroids, torch.tensor([0, moved if goes else 0.0]).expand(1, 3, 2))


def test_what_is_carried_stays_with_its_layer_and_branch():
    q, k, v = alike(VIDEO, spread=1.0)
    first, other = {}, {}
    fresh = SVG2().plan(q, k, v, call(state=first))
    SVG2().plan(q, k, v, call(state=first))
    assert torch.equal(SVG2().plan(q, k, v, call(state=other)).key_order, fresh.key_order)


def test_what_both_branches_lose_alike_is_not_in_their_difference():
    q, k, v = alike(VIDEO, spread=1.0)
    made = torch.Generator().manual_seed(9)
    near = [x + 0.1 * torch.randn(x.shape, generator=made) for x in (q, k, v)]
    off = {}
    for share in (True, False):
        lost, first = [], None
        for n, x in enumerate(((q, k, v), near)):
            plan = first if share and first else SVG2().plan(*x, call(sparsity=0.8, seed=n))
            first = first or plan
            lost.append(attend(*x, plan, 0.125)[0] - dense(*x))
        off[share] = (4 * lost[0] - 3 * lost[1]).square().mean().item()
    assert off[True] < 0.5 * off[False]


class NoSync(TorchDispatchMode):
    """Fails on operators that would wait for a GPU."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        assert op.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select", "unique2", "equal")
        return op(*args, **(kwargs or {}))


@by_name
@pytest.mark.parametrize("grid", GRIDS[:2], ids=str)
def test_planning_waits_for_nothing(method, grid):
    q, k, v = alike(grid)
    state = {}
    with NoSync():
        plans = [method.plan(q, k, v, call(grid, state=state)) for _ in range(2)]
        plans[-1].mask.density(), plans[-1].mask.kv_blocks()
    with NoSync(), pytest.raises(AssertionError):
        plans[0].mask.keep.any().item()


def test_the_number_of_clusters_follows_the_tokens_up_to_the_published_one():
    def count(side, grid, block_size):
        c = AttentionCall(1, 4, "cond", 3, 10, grid, 0.8, 0.1, torch.Generator(), block_size)
        return SVG2().count(side, c, grid.video)

    wan, small = TokenGrid(21, 45, 80), TokenGrid(9, 16, 16)
    assert (count("query", wan, 128), count("key", wan, 128)) == (300, 1000)
    assert (count("query", small, 64), count("key", small, 64)) == (72, 144)
    assert count("query", TokenGrid(21, 30, 52), 128) == 204
    assert count("query", TokenGrid(1, 1, 3), 64) == 1


def test_native_knob_keeps_the_mass_it_names():
    q, k, v = alike(VIDEO, spread=0.2)
    plan = SVG2(top_p=0.9, min_share=0.05).plan(q, k, v, call(sparsity=0.0))
    made = (torch.Generator().manual_seed(0) for _ in range(2))
    query, key = (cluster_order(x, VIDEO, [n], None, 10, next(made)) for x, n in ((q, 15), (k, 30)))
    mass = centroid_mass(query, key, 0.125)
    high, low = (SVG2(top_p=p, min_share=0.05).choose(query, key, k, v, call(), None) for p in (0.9, 0.5))
    assert (mass * high).sum(-1).min() >= 0.9 - 1e-5
    assert plan.mask.density().min() >= 0.05 and low.sum() < high.sum() < 0.7 * high.numel()


def test_empty_clusters_hold_no_mass():
    q, k, _ = alike(VIDEO)
    query = cluster_order(q, VIDEO, [6], None, 2)
    far = torch.full((2, 4, 64), 50.0)
    four = cluster_order(k, VIDEO, [4], None, 2)
    sizes = torch.cat((four.partition.run_sizes[0], torch.zeros(2, 4)), 1)
    eight = Start.of(torch.cat((four.starts[0].centroids, far), 1), sizes, VIDEO.video)
    torch.testing.assert_close(eight.centre[:, 0], k[0].mean(0), rtol=1e-4, atol=1e-5)
    key = cluster_order(k, VIDEO, [8], [eight], 2)
    assert (key.partition.run_sizes[..., 4:] == 0).all()
    mass = centroid_mass(query, key, 0.125)
    assert (mass[..., 4:] == 0).all() and torch.allclose(mass.sum(-1), torch.ones(1, 2, 6))


def test_the_error_of_a_pair_is_what_its_means_get_wrong():
    q, k, v = alike(VIDEO, heads=1)
    query, key = cluster_order(q, VIDEO, [5], None, 3), cluster_order(k, VIDEO, [7], None, 3)
    found = compensation_error(query, key, k, v, 0.125)[0, 0]
    keys, values = (x[0, key.order[0, 0].long(), 0].double() for x in (k, v))
    for m in range(5):
        anchor = query.means[0, 0, m].double() * 0.125
        total = (keys @ anchor).logsumexp(0)
        start = 0
        for n, size in enumerate(key.partition.run_sizes[0, 0].tolist()):
            part = slice(start, start + size)
            start += size
            mean, value = keys[part].mean(0), values[part].mean(0)
            off = ((keys[part] @ anchor - total).exp()[:, None] * values[part]) - (mean @ anchor - total).exp() * value
            assert found[m, n].item() == pytest.approx(off.square().sum().item(), rel=1e-3, abs=1e-7)


def test_refilling_spends_what_was_there_and_keeps_what_is_sure():
    made = torch.Generator().manual_seed(0)
    gain, sizes = torch.rand(1, 1, 6, 40, generator=made), torch.randint(0, 30, (1, 1, 40), generator=made)
    room, sure = (torch.rand(1, 1, 6, 40, generator=made) < p for p in (0.4, 0.1))
    keep = refill(gain, room, sure, sizes)
    assert (keep | ~sure).all()
    spent, given = ((x * sizes[..., None, :]).sum(-1) for x in (keep, room))
    assert ((spent - given).abs() <= 30).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"query_clusters": 0}, "query_clusters must be 'auto' or a whole number of at least 1, got 0"),
        ({"iterations": True}, "iterations must be"),
        ({"top_p": 0.0}, "above 0 and at most 1"),
        ({"scope": "rows"}, "row, head, layer"),
        ({"min_share": 2}, "from 0 to 1"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        SVG2(**options)


def test_masks_of_clusters_say_what_does_not_fit():
    side = ClusterPartition(10, torch.tensor([[[4, 6]]], dtype=torch.int32))
    with pytest.raises(ValueError, match="2 x 3 clusters, but its partitions have 2 x 2"):
        ClusterMask(torch.ones(1, 1, 2, 3, dtype=torch.bool), side, side)
    with pytest.raises(ValueError, match="int32"):
        ClusterPartition(10, torch.tensor([[[4, 6]]]))
    assert side.labels().tolist() == [[[0] * 4 + [1] * 6]]


def test_density_of_a_mask_counts_pairs_of_tokens():
    made = torch.Generator().manual_seed(2)
    sizes = torch.tensor([[[4, 0, 6]]], dtype=torch.int32), torch.tensor([[[1, 7, 2, 0]]], dtype=torch.int32)
    sides = [ClusterPartition(10, x) for x in sizes]
    mask = ClusterMask(torch.rand(2, 3, 3, 4, generator=made) < 0.5, *sides)
    for b in range(2):
        for h in range(3):
            assert mask.density()[b, h].item() == pytest.approx(mask.to_tokens(b, h, range(10)).float().mean().item())
