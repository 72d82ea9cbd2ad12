"""Which blocks share a budget, what blocks that mix parts count for, and where a reference is in the picture."""

import numpy as np
import pytest
import torch

from dittools.orders.named import ORDERS
from dittools.selection.areas import AreaPair, area_pairs, areas_of
from dittools.selection.boxes import boxes_of
from dittools.selection.budget import SCOPES, select_topk_blocks
from dittools.selection.ordered_blocks import cut_into_blocks
from dittools.tokens import Part, TokenGrid

IMAGE = Part.of("reference", 1, 9, 7)  # 63 tokens
GRID = TokenGrid(3, 10, 7, 20, "last", (Part.of("history", 2, 5, 7), IMAGE))  # 210 + 70 + 63 + 20


def test_a_block_belongs_to_the_kind_that_has_most_of_it_and_text_makes_it_mixed():
    picture, history, reference = areas_of(GRID, 16)
    assert [area.kind for area in (picture, history, reference)] == ["picture", "history", "reference"]
    # 210 = 13 * 16 + 2: the 14th block holds 2 of the picture and 14 of history, which ends after 280 = 17 * 16 + 8.
    assert (picture.blocks, history.blocks) == (slice(0, 13), slice(13, 18))
    assert history.tokens.tolist() == [14, 16, 16, 16, 8] and not history.mixed.any()
    # 343 = 21 * 16 + 7: the last block of the reference holds 9 of the text.
    assert reference.blocks == slice(18, 22) and reference.tokens.tolist() == [16, 16, 16, 7]
    assert reference.mixed.tolist() == [False, False, False, True]


def test_mixed_blocks_take_at_most_half_of_a_budget_from_the_others():
    picture = areas_of(TokenGrid(1, 10, 10, 12, "first"), 16)[0]
    pair = AreaPair(picture, picture)
    assert pair.mixed == pytest.approx(1 - 0.96**2) and pair.density(0.5) == 0.5 and pair.density(1.0) == 1
    assert pair.density(0.1) == pytest.approx(pair.mixed + 0.05 * (1 - pair.mixed))
    alone = areas_of(TokenGrid(1, 10, 10), 16)[0]
    assert AreaPair(alone, alone).density(0.01) == 0.01


@pytest.mark.parametrize("scope", SCOPES)
def test_each_kind_of_pair_keeps_what_is_asked_and_a_picture_alone_is_spent_as_ever(scope):
    made = torch.Generator().manual_seed(0)
    blocks = cut_into_blocks(GRID, 16, "raster")
    scores = torch.rand(1, 3, 23, 23, generator=made)
    scores[..., 13:] += 5  # whatever beckons elsewhere
    keep = blocks.select_topk(scores, 0.3, scope=scope, force=blocks.force_text)
    for pair in area_pairs(blocks.areas):
        found = (torch.from_numpy(pair.weight) * keep[(..., *pair.place)]).sum((-1, -2)).mean() / pair.weight.sum()
        held = pair.query.mixed[:, None] | pair.key.mixed
        if pair.query is pair.key:
            held = held | np.eye(len(held), dtype=bool)
        least = pair.weight[held].sum() / pair.weight.sum()
        assert found.item() == pytest.approx(max(pair.density(0.3), least), abs=0.04), (pair.query.kind, pair.key.kind)
    assert keep[..., 22, :].all() and keep[..., :, 22].all()

    alone = cut_into_blocks(TokenGrid(3, 10, 7), 16, "raster")
    scores = torch.rand(1, 3, 14, 14, generator=made)
    assert not alone.force_text.any()
    want = select_topk_blocks(scores, alone.sizes, alone.sizes, 0.3, scope=scope)
    assert torch.equal(alone.select_topk(scores, 0.3, scope=scope, force=alone.force_text), want)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ["raster", "cubes", "curve"])
def test_boxes_of_a_reference_are_where_its_tokens_are_in_the_picture(name, flat):
    grid = TokenGrid(4, 6, 9, 5, "first", (Part.of("history", 2, 3, 18), Part.of("reference", 1, 12, 4)))
    blocks = cut_into_blocks(grid, 16, name)
    order = torch.arange(grid.tokens) if blocks.order is None else blocks.order[0, 0]
    boxes = boxes_of(grid, order, 16, flat=flat)
    assert (np.diff(boxes.block) >= 0).all() and (boxes.low <= boxes.high).all()
    sides = (grid.frames, grid.frame) if flat else grid.shape
    assert (boxes.high < sides).all() and (boxes.low >= 0).all()
    dense, places = grid.stays_dense(), grid.places()
    for m in range(blocks.partition.count):
        mine = [token for token in order[16 * m : 16 * (m + 1)].tolist() if not dense[token]]
        low, high = (side[boxes.block == m] for side in (boxes.low, boxes.high))
        at = np.stack(np.unravel_index(places[mine].numpy(), sides), 1)
        inside = (low[:, None] <= at) & (at <= high[:, None])  # [boxes, tokens, axes]
        assert inside.all(-1).any(0).all(), "every token lies in a box of its block"
        if not flat:  # and no box is larger than its tokens: they cover shares of the picture
            cells = sum(_cells(grid, token) for token in mine)
            assert (high - low + 1).prod(1).sum() <= cells


def _cells(grid, token):
    """How many tokens of the picture one of another grid may lie on."""
    part = next(part for part, at in grid.grids if at.start <= token < at.stop)
    return np.prod([-(-x // n) + (x % n > 0) for x, n in zip(grid.shape, part.shape, strict=True)])


@pytest.mark.parametrize("name", ORDERS)
def test_every_order_leaves_each_part_in_its_place(name):
    order = cut_into_blocks(GRID, 16, name).order
    tokens = torch.arange(GRID.tokens) if order is None else order[0, 0].long()
    for _, at in GRID.placed:
        assert torch.equal(tokens[at].sort().values, torch.arange(at.start, at.stop))
