"""The table of measures: what is measured, what is left out and why."""

import math

import numpy as np
import pytest

from dittools.quality import METRICS, measure
from dittools.quality.suite import by_name, shown


@pytest.fixture
def video():
    return (np.random.default_rng(0).random((3, 40, 48, 3)) * 255).astype(np.uint8)


def test_identical_videos_are_infinitely_close_and_shown_as_identical(video):
    found = measure(video, video)
    assert found.scores["psnr"].mean == found.scores["temporal_psnr"].mean == math.inf
    assert shown(by_name()["psnr"], math.inf) == "identical"
    assert found.scores["ssim"].mean == pytest.approx(1)


def test_every_measure_is_there_or_left_out_with_a_reason(video):
    found = measure(video, 255 - video)
    assert found.scores.keys() | found.left_out.keys() == {metric.name for metric in METRICS}
    assert not found.scores.keys() & found.left_out.keys()
    assert found.left_out["ms_ssim"] == "frames of 40 x 48 are too small (at least 176 x 176)"
    assert all(found.left_out.values())


def test_uint8_and_floats_score_alike(video):
    other = 255 - video
    assert (
        measure(video, other).scores["psnr"] == measure(video / np.float32(255), other / np.float32(255)).scores["psnr"]
    )


def test_one_frame_has_no_motion_to_measure(video):
    assert measure(video[:1], video[:1]).left_out["temporal_psnr"] == "one frame does not move"


def test_videos_that_differ_in_shape_are_refused_with_both(video):
    with pytest.raises(ValueError, match="3x40x48x3 against the reference's 2x40x48x3"):
        measure(video, video[:2])
