"""What svg decides for heads whose pattern is known."""

import pytest
import torch

from dittools.attention import attend
from dittools.methods import AttentionCall
from dittools.methods.svg import SVG
from dittools.orders.token_major import token_major
from dittools.tokens import TokenGrid

GRIDS = [TokenGrid(6, 9, 11), TokenGrid(5, 8, 8, text=13, text_position="last"), TokenGrid(9, 7, 10)]


def heads(grid, kinds, sharpness=8.0):
    """q, k, v ``[len(kinds), S, len(kinds[0]), 64]`` in which a "frame" head attends to its query's own
    frame, a "place" head to the same patch in all frames, a "flat" head to everything."""
    generator = torch.Generator().manual_seed(0)
    at = torch.full((grid.tokens, 2), -1)
    at[grid.video_slice] = torch.stack((grid.positions()[:, 0], torch.arange(grid.video) % grid.frame), -1)
    q = torch.zeros(len(kinds), grid.tokens, len(kinds[0]), 64)
    for b, row in enumerate(kinds):
        for h, kind in enumerate(row):
            if kind != "flat":
                group = at[:, 0] if kind == "frame" else at[:, 1]
                marks = torch.randn(int(group.max()) + 2, 64, generator=generator)
                q[b, :, h] = torch.nn.functional.normalize(marks, dim=-1)[group] * sharpness
    v = torch.randn(q.shape, generator=generator)
    return q, q.clone(), v


def call(grid, sparsity=0.7, step=3, block_size=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return AttentionCall(1, 4, "cond", step, 10, grid, sparsity, 0.5, generator, block_size)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_frame_local_heads_go_spatial_and_same_place_heads_go_temporal(grid):
    q, k, v = heads(grid, [["frame", "place", "frame"], ["place", "place", "frame"]])
    plan = SVG().plan(q, k, v, call(grid))
    raster, major = torch.arange(grid.tokens, dtype=torch.int32), token_major(grid)
    for b, row in enumerate(["st" + "s", "tts"]):
        for h, kind in enumerate(row):
            assert torch.equal(plan.order[b, h], major if kind == "t" else raster), (b, h)
    assert {name: int(count.sum()) for name, count in plan.facts.items()} == {"spatial": 3, "temporal": 3}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_chosen_pattern_comes_nearer_to_dense_than_the_other(grid):
    q, k, v = heads(grid, [["frame", "place"]])
    plan = SVG().plan(q, k, v, call(grid))
    flipped = SVG().plan(q.flip(2), k.flip(2), v.flip(2), call(grid))
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), scale=0.5
    ).transpose(1, 2)
    good, wrong = (attend(q, k, v, p, 0.5)[0] - dense for p in (plan, flipped))
    for h in range(2):
        assert good[:, :, h].square().mean() < 0.2 * wrong[:, :, h].square().mean()


def test_with_spatial_heads_alone_no_order_is_needed():
    q, k, v = heads(GRIDS[0], [["frame", "frame"]])
    assert SVG().plan(q, k, v, call(GRIDS[0])).order is None


def test_the_plan_runs_the_pairs_that_were_probed():
    grid = GRIDS[1]
    q, k, v = heads(grid, [["frame", "place"]], sharpness=3.0)
    c = call(grid)
    plan = SVG().plan(q, k, v, c)
    out, _ = attend(q, k, v, plan, 0.5, implementation="naive")
    rows = torch.arange(grid.tokens)
    for h, pattern in enumerate(SVG().patterns(c, torch.device("cpu"))):
        logits = (q[0, :, h] @ k[0, :, h].T * 0.5).masked_fill(~pattern.rows(rows), -torch.inf)
        torch.testing.assert_close(out[0, :, h], logits.softmax(-1) @ v[0, :, h], rtol=1e-4, atol=1e-5)


def test_masks_are_made_once_a_run():
    made = []

    class Counted(SVG):
        def patterns(self, *args):
            made.append(args)
            return super().patterns(*args)

    q, k, v = heads(GRIDS[0], [["frame", "place"]])
    c = call(GRIDS[0])
    for _ in range(3):
        Counted().plan(q, k, v, c)
    assert len(made) == 1


def test_a_kept_plan_is_made_again_as_it_was():
    q, k, v = heads(GRIDS[0], [["frame", "place"]])
    plan = SVG().plan(q, k, v, call(GRIDS[0]))
    again = plan.pack()()
    assert torch.equal(plan.order, again.order) and torch.equal(plan.mask.keep, again.mask.keep)


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.9])
def test_sparsity_of_a_plan_is_what_was_asked_whatever_the_heads_choose(sparsity):
    q, k, v = heads(GRIDS[2], [["frame", "place", "flat"]])
    plan = SVG().plan(q, k, v, call(GRIDS[2], sparsity))
    assert (1 - plan.mask.density() - sparsity).abs().max() <= 0.02


def test_it_says_which_grids_it_cannot_take():
    assert "1 frame" in SVG().why_not(TokenGrid(1, 64, 64), 64)
    assert "at least 4 blocks of 64" in SVG().why_not(TokenGrid(3, 8, 8), 64)
    assert SVG().why_not(TokenGrid(3, 8, 9), 64) is None


def test_planning_reads_nothing_back_from_the_device():
    # Meta tensors hold no values: whatever would wait for a GPU fails on them.
    grid = TokenGrid(21, 30, 52)
    q, k, v = (torch.empty(1, grid.tokens, 12, 128, dtype=torch.bfloat16, device="meta") for _ in range(3))
    plan = SVG().plan(q, k, v, call(grid, block_size=128))
    assert plan.order.shape == (1, 12, 32760) and plan.mask.keep.shape == (1, 12, 256, 256)
    assert plan.mask.density().device.type == plan.mask.kv_blocks()[0].device.type == "meta"
