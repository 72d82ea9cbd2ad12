"""What was written is read back, and what cannot be read says so."""

import numpy as np
import pytest

from dittools.pipelines import reading, saving
from dittools.pipelines.errors import BadInput


@pytest.fixture(scope="module")
def frames():
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([np.stack([y * 5, x * 3, np.full_like(x, 40 * t)], -1) for t in range(5)]).astype(np.uint8)


@pytest.mark.parametrize("kind", ["mkv", "npy", "folder"])
def test_lossless_forms_come_back_as_they_were(tmp_path, frames, kind):
    path = tmp_path / (f"a.{kind}" if kind != "folder" else "a")
    saving.write(frames, path, kind, 16)
    assert np.array_equal(reading.read(path).frames, frames)


@pytest.mark.parametrize(("kind", "least"), [("mp4", 38), ("webp", 38), ("gif", 25)])
def test_lossy_forms_come_back_nearly(tmp_path, frames, kind, least):
    saving.write(frames, tmp_path / f"a.{kind}", kind, 16)
    video = reading.read(tmp_path / f"a.{kind}")
    assert video.frames.shape == frames.shape and video.fps == pytest.approx(16, rel=0.05)
    error = ((video.frames.astype(float) - frames) ** 2).mean()
    assert 10 * np.log10(255**2 / error) > least


def test_the_same_frames_make_the_same_lossless_file(tmp_path, frames):
    for name in "ab":
        saving.write(frames, tmp_path / f"{name}.mkv", "mkv", 16)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()


def test_float_arrays_are_read_as_pixels(tmp_path, frames):
    np.save(tmp_path / "a.npy", frames / np.float32(255))
    assert np.array_equal(reading.read(tmp_path / "a.npy").frames, frames)


def test_arrays_that_would_run_code_are_not_read(tmp_path):
    np.save(tmp_path / "a.npy", np.array([print], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="cannot be read"):
        reading.read(tmp_path / "a.npy")


def test_images_of_different_sizes_are_no_video(tmp_path, frames):
    saving.write(frames, tmp_path / "a", "folder", 16)
    saving.write(frames[:1, :32], tmp_path / "a" / "00009.png", "png", 16)
    with pytest.raises(BadInput, match=r"00009.png has another size than .*00000.png"):
        reading.read(tmp_path / "a")


def test_sizes_are_told_in_words(frames):
    assert reading.Video(frames, 16).size == "5 frames of 48 x 64"
    assert reading.Video(frames[:1], None).size == "1 frame of 48 x 64"
