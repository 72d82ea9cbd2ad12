import dataclasses
import json
import re

import pytest
import torch

from dittools.tokens import Layout, Part, TokenGrid, arranged


def test_counts_of_a_video_with_text():
    grid = TokenGrid(21, 30, 52, text=226, text_position="first")
    assert (grid.frame, grid.video, grid.tokens) == (1560, 32760, 32986)
    assert grid.shape == (21, 30, 52)


def test_an_image_is_one_frame_without_text():
    grid = TokenGrid(1, 4, 6)
    assert grid.tokens == grid.video == grid.frame == 24
    assert grid.text_slice == slice(24, 24) and grid.video_slice == slice(0, 24)


@pytest.mark.parametrize("position", ["first", "last"])
def test_text_and_video_share_the_sequence_without_overlap(position):
    grid = TokenGrid(2, 3, 4, text=5, text_position=position)
    text = grid.is_text()
    assert text.shape == (29,) and text.sum() == 5
    assert text[grid.text_slice].all() and not text[grid.video_slice].any()
    assert text[0].item() == (position == "first")
    assert grid.video_start == grid.video_slice.start


def test_positions_of_video_tokens_run_frame_by_frame_and_row_by_row():
    grid = TokenGrid(3, 4, 5, text=2, text_position="first")
    positions = grid.positions()
    assert positions.shape == (60, 3) and positions.dtype == torch.int64
    i = torch.arange(60)
    assert torch.equal(positions[:, 0], i // 20)
    assert torch.equal(positions[:, 1] * 5 + positions[:, 2], i % 20)
    assert positions.max(0).values.tolist() == [2, 3, 4]


def test_a_grid_is_a_frozen_value():
    assert TokenGrid(2, 3, 4) == TokenGrid(2, 3, 4) and len({TokenGrid(2, 3, 4), TokenGrid(2, 3, 4)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenGrid(2, 3, 4).frames = 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "TokenGrid.frames must be an integer of at least 1, got 0"),
        ({"width": 2.5}, "TokenGrid.width must be an integer of at least 1, got 2.5"),
        ({"height": True}, "TokenGrid.height must be an integer of at least 1, got True"),
        ({"text": -1}, "TokenGrid.text must be an integer of at least 0, got -1"),
        ({"text": 3}, "3 text tokens at position 'none'"),
        ({"text_position": "last"}, "0 text tokens at position 'last'"),
        ({"text": 3, "text_position": "middle"}, "one of none, first, last, got 'middle'"),
    ],
)
def test_a_wrong_grid_is_refused_in_one_line(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        TokenGrid(**{"frames": 2, "height": 3, "width": 4, **arguments})
    assert "\n" not in str(caught.value)


PAST, IMAGE = Part.of("history", 2, 1, 2), Part.of("reference", 1, 4, 2)


def test_parts_follow_the_picture_and_text_is_on_one_side_of_all():
    for position, kinds in (("first", "text picture history reference"), ("last", "picture history reference text")):
        grid = TokenGrid(2, 2, 4, 3, position, (PAST, IMAGE))
        assert grid.tokens == 16 + 3 + 4 + 8 and [part.kind for part, _ in grid.placed] == kinds.split()
        assert [at.start for _, at in grid.placed] == [0, *(at.stop for _, at in grid.placed)][:-1]
        assert {part.kind: at for part, at in grid.placed}["text"] == grid.text_slice
        assert grid.is_text().equal(grid.stays_dense())
    seen = TokenGrid(1, 2, 2, parts=(Part("sound", 5), IMAGE))
    assert seen.stays_dense().tolist() == [False] * 4 + [True] * 5 + [False] * 8 and not seen.is_text().any()


def test_a_token_of_a_reference_is_at_the_same_place_of_the_picture():
    grid = TokenGrid(2, 2, 4, 3, "first", (PAST, IMAGE))
    places = grid.places()
    assert places[grid.video_slice].tolist() == list(range(16)) and places[:3].tolist() == [0] * 3
    # Each frame of history has two tokens: the middle of the left half and of the right half, in the lower row.
    assert places[19:23].tolist() == [5, 7, 13, 15]
    # The one frame of the image is in the middle of two, so in the second; four rows share two.
    assert places[23:].tolist() == [9, 11, 9, 11, 13, 15, 13, 15]


def test_a_grid_with_parts_survives_a_file():
    grid = TokenGrid(2, 2, 4, 3, "last", (PAST, Part("reference", 7)))
    assert TokenGrid(**json.loads(json.dumps(dataclasses.asdict(grid)))) == grid


@pytest.mark.parametrize(
    ("part", "says"), [(("music", 3), "one of text"), (("reference", 7, (1, 2, 3)), "cannot be a grid of (1, 2, 3)")]
)
def test_a_part_that_cannot_be_is_refused(part, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        Part(*part)


def test_parts_that_are_no_grids_come_after_those_that_are_and_kinds_side_by_side():
    blind, text, picture = Part("reference", 3), Part("text", 2), Part.of("picture", 1, 2, 2)
    grid, order = arranged([IMAGE, text, blind, picture, PAST, IMAGE])
    assert grid == TokenGrid(1, 2, 2, 2, "last", (IMAGE, IMAGE, PAST, blind)) and order == [3, 0, 5, 4, 2, 1]
    assert not Layout(1, 2, 2, before=(IMAGE,)).in_order(12) and Layout(1, 2, 2, None, (IMAGE,)).in_order(128 + 12)
