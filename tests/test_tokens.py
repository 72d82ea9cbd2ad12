import dataclasses

import pytest
import torch

from dittools.tokens import TokenGrid


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
