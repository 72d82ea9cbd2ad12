"""What was written is read back, and what cannot be read says so."""

import numpy as np
import pytest
from PIL import Image

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


@pytest.mark.parametrize("kind", ["gif", "webp", "mp4", "mkv"])
def test_frames_that_repeat_come_back_at_their_rate(tmp_path, frames, kind):
    for name, video in (("pauses", frames[[0, 0, 0, 0, 1, 2, 2, 3, 4]]), ("still", frames[[0] * 9])):
        saving.write(video, tmp_path / f"{name}.{kind}", kind, 16)
        found = reading.read(tmp_path / f"{name}.{kind}")
        assert len(found.frames) == 9 and found.fps == pytest.approx(16, rel=0.03)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_frames_that_another_program_merged_are_told_by_their_time(tmp_path, frames, kind):
    images = [Image.fromarray(frames[n]) for n in (0, 0, 0, 1, 2, 2, 3)]
    images[0].save(tmp_path / "a", format=kind, save_all=True, append_images=images[1:], duration=60, loop=0)
    path = (tmp_path / "a").rename(tmp_path / f"a.{kind.lower()}")
    with Image.open(path) as image:
        assert image.n_frames == 4, "merged"
    found = reading.read(path)
    assert len(found.frames) == 7 and found.fps == pytest.approx(1000 / 60)
    assert [int((a != b).any()) for a, b in zip(found.frames[:-1], found.frames[1:], strict=True)] == [0, 0, 1, 1, 0, 1]


def test_an_animation_without_one_rate_is_refused(tmp_path, frames):
    images = [Image.fromarray(frame) for frame in frames[:3]]
    times = [10, 10, 60_000]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=times)
    with pytest.raises(BadInput, match="10 to 60000 ms each, which is no video of one rate"):
        reading.read(tmp_path / "a.gif")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: x.__setitem__((2, 0, 0, 0), np.nan), "holds 1 values in frame 3 that are not finite"),
        (lambda x: x.__setitem__((1, 0), np.inf), "holds 192 values in frame 2 that are not finite"),
        (lambda x: np.multiply(x, 255, out=x), r"from 0 to 255.*these look like levels 0 to 255, so divide them"),
        (lambda x: np.subtract(2 * x, 1, out=x), r"floats from -1 to 1, and a video is uint8, or floats in \[0, 1\]$"),
        (lambda x: np.add(x, 0.5, out=x), r"floats from 0.5 to 1.5, and a video is uint8, or floats in \[0, 1\]$"),
    ],
)
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_that_are_no_video_say_what_they_are(tmp_path, frames, change, said, dtype):
    video = (frames / np.float32(255)).astype(dtype)
    video[0, 0, 0] = 0
    video[0, 0, 1] = 1
    change(video)
    np.save(tmp_path / "a.npy", video)
    with pytest.raises(BadInput, match=said):
        reading.read(tmp_path / "a.npy")


def test_floats_may_be_off_by_rounding(tmp_path, frames):
    video = (frames / 255 * 1.0009 - 0.0005).astype(np.float32)
    np.save(tmp_path / "a.npy", video)
    assert np.abs(reading.read(tmp_path / "a.npy").frames.astype(int) - frames).max() <= 1


def test_an_empty_name_is_not_the_current_folder():
    with pytest.raises(BadInput, match="the name of a video is empty"):
        reading.read("")
