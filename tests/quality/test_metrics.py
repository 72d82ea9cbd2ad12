"""PSNR and SSIM against plain formulas and hand-made videos."""

import math

import numpy as np
import pytest
import torch

from dittools.quality import psnr, ssim


@pytest.fixture
def video():
    return np.random.default_rng(0).random((3, 16, 20, 3), dtype=np.float32)


def test_identical_videos_are_infinitely_close(video):
    assert psnr(video, video).mean == math.inf
    assert psnr(video, video).per_frame == [math.inf] * 3
    assert ssim(video, video).mean == pytest.approx(1.0, abs=1e-6)


def test_psnr_of_a_known_error_is_the_formula(video):
    moved = (video * 0.5).astype(np.float32)
    moved[1] += 0.1
    base = (video * 0.5).astype(np.float32)
    base[2] = moved[2] + np.float32(0.01)
    score = psnr(moved, base)
    assert score.per_frame[0] == math.inf
    assert score.per_frame[1] == pytest.approx(20.0, abs=1e-3)
    assert score.per_frame[2] == pytest.approx(40.0, abs=1e-3)
    assert score.mean == pytest.approx(30.0, abs=1e-3)  # the equal frame does not hide the two that differ


def test_ssim_falls_as_noise_grows_and_is_symmetric(video):
    rng = np.random.default_rng(1)
    noise = rng.standard_normal(video.shape).astype(np.float32)
    little, much = (np.clip(video + s * noise, 0, 1) for s in (0.02, 0.3))
    assert 1 > ssim(little, video).mean > ssim(much, video).mean
    assert ssim(much, video).mean == pytest.approx(ssim(video, much).mean, abs=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_arrays_tensors_and_batches_agree(metric, video):
    other = np.clip(video + 0.05, 0, 1)
    flat = metric(other, video)
    batched = metric(torch.from_numpy(other)[None], torch.from_numpy(video)[None])
    assert flat.per_frame == batched.per_frame and len(flat.per_frame) == 3
    two = metric(np.stack([other, other]), np.stack([video, video]))
    assert two.per_frame == flat.per_frame * 2


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_videos_of_different_length_or_size_are_refused_with_both_shapes(metric, video):
    with pytest.raises(ValueError, match="3x16x20x3 against the reference's 2x16x20x3"):
        metric(video, video[:2])
    with pytest.raises(ValueError, match="same frames, height and width"):
        metric(video, video[:, :8])


def test_images_integers_and_empty_videos_are_refused(video):
    with pytest.raises(ValueError, match="a video is"):
        psnr(video[0], video[0])
    with pytest.raises(ValueError, match="a video is"):
        psnr(video[:0], video[:0])
    with pytest.raises(ValueError, match="divide by 255"):
        psnr((video * 255).astype(np.uint8), (video * 255).astype(np.uint8))


def test_ssim_of_frames_below_its_window_says_so(video):
    with pytest.raises(ValueError, match="8 x 20 pixels"):
        ssim(video[:, :8], video[:, :8])
