"""Every output format round-trips, and a failed write leaves nothing behind."""

import errno
import os

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from dittools.pipelines import saving
from dittools.pipelines.errors import BadInput, RunFailed


@pytest.fixture(scope="module")
def frames():
    """Five 48 x 64 frames: smooth colour ramps with a moving white square."""
    y, x = np.mgrid[0:48, 0:64]
    video = np.empty((5, 48, 64, 3), np.uint8)
    for t in range(5):
        video[t] = np.stack([y * 5, x * 3, np.full_like(x, 40 * t)], -1).astype(np.uint8)
        video[t, 10:20, 8 * t : 8 * t + 10] = 255
    return video


def save(frames, name, fps=16):
    output = saving.plan(str(name), len(frames))
    with saving.whole(output.path) as part:
        saving.write(frames, part, output.kind, fps)
    return output


def psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2))


def read_animation(path):
    image, frames, milliseconds = Image.open(path), [], []
    for number in range(image.n_frames):
        image.seek(number)
        frames.append(np.asarray(image.convert("RGB")))
        milliseconds.append(image.info["duration"])
    return np.stack(frames), milliseconds


def test_npy_is_exact(tmp_path, frames):
    assert np.array_equal(np.load(save(frames, tmp_path / "a.npy").path), frames)


def test_png_frames_are_exact_and_sort_in_time_order(tmp_path, frames):
    output = save(frames, f"{tmp_path}/clip/")
    files = sorted(output.path.iterdir())
    assert [file.name for file in files] == [f"{n:05d}.png" for n in range(5)]
    assert np.array_equal(np.stack([np.asarray(Image.open(file)) for file in files]), frames)


def test_png_of_one_frame_is_exact(tmp_path, frames):
    assert np.array_equal(np.asarray(Image.open(save(frames[:1], tmp_path / "a.png").path)), frames[0])


def test_mp4_keeps_count_size_rate_and_colours(tmp_path, frames):
    reader = imageio_ffmpeg.read_frames(str(save(frames, tmp_path / "a.mp4").path))
    meta = next(reader)
    back = [np.frombuffer(raw, np.uint8).reshape(48, 64, 3) for raw in reader]
    assert meta["size"] == (64, 48) and meta["fps"] == 16 and meta["pix_fmt"].startswith("yuv420p")
    assert len(back) == 5
    assert psnr(np.stack(back), frames) > 28  # half the colour resolution is lost on the square's edges


def test_mp4_of_odd_sizes_gains_one_edge_row_and_column(tmp_path, frames):
    reader = imageio_ffmpeg.read_frames(str(save(frames[:, :47, :63], tmp_path / "a.mp4").path))
    assert next(reader)["size"] == (64, 48)


@pytest.mark.parametrize("fps", [16, 24, 8])
@pytest.mark.parametrize(("suffix", "unit", "floor"), [("gif", 10, 25), ("webp", 1, 28)])
def test_animations_keep_count_size_and_total_time(tmp_path, frames, suffix, unit, floor, fps):
    back, milliseconds = read_animation(save(frames, tmp_path / f"a.{suffix}", fps).path)
    assert back.shape == frames.shape
    assert psnr(back, frames) > floor
    if suffix == "gif":  # Pillow reports no time of each WebP frame
        assert abs(sum(milliseconds) - 5000 / fps) <= unit


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".webp", ".png", ".npy"])
def test_a_single_frame_fits_every_format(tmp_path, frames, suffix):
    assert save(frames[:1], tmp_path / f"one{suffix}").path.stat().st_size > 0


def test_record_lies_beside_the_video(tmp_path):
    assert saving.plan(f"{tmp_path}/out.mp4", 5).record == tmp_path / "out.json"
    assert saving.plan(f"{tmp_path}/clip", 5).record == tmp_path / "clip.json"
    assert saving.plan(f"{tmp_path}/run.1/", 5).record == tmp_path / "run.1.json"


def test_suffixes_are_read_in_any_case(tmp_path):
    assert saving.plan(f"{tmp_path}/OUT.MP4", 5).kind == "mp4"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("out.mp5", "did you mean .*out.mp4"),
        ("out.json", "no known format.*.mp4, .gif, .webp, .npy, .png, .mkv or a folder"),
        ("out.png", "--frames is 5: use --frames 1"),
        ("gone/out.mp4", "there is no folder .*gone: make it first"),
        ("", "names no file"),
    ],
)
def test_bad_names_say_what_would_work(tmp_path, name, said):
    with pytest.raises(BadInput, match=said):
        saving.plan(f"{tmp_path}/{name}" if name else "", 5)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_is_never_touched(tmp_path, frames):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(BadInput, match="use a new or empty folder"):
        saving.plan(f"{tmp_path}/mine", 5)
    (tmp_path / "empty.d").mkdir()
    assert len(list(save(frames, tmp_path / "empty.d").path.iterdir())) == 5


def test_a_file_or_folder_in_the_way_is_named(tmp_path):
    (tmp_path / "notes").write_text("x")
    with pytest.raises(BadInput, match="is a file"):
        saving.plan(f"{tmp_path}/notes", 5)
    (tmp_path / "out.json").mkdir()
    with pytest.raises(BadInput, match="replace the folder"):
        saving.plan(f"{tmp_path}/out.mp4", 5)


def test_an_unwritable_folder_is_found_before_the_run(tmp_path, monkeypatch):
    def refuse(self, data):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    with pytest.raises(BadInput, match=r"cannot be written \(Permission denied\): choose another folder"):
        saving.plan(f"{tmp_path}/out.mp4", 5)


@pytest.mark.parametrize("suffix", [".npy", ".gif", "/"])
def test_a_disk_that_fills_up_midway_leaves_the_old_file_and_no_part(tmp_path, frames, suffix, monkeypatch):
    target = f"{tmp_path}/out{suffix}"
    if suffix != "/":
        (tmp_path / f"out{suffix}").write_text("older")

    def fill(frames, path, kind, fps):
        if kind == "folder":
            path.mkdir()
            (path / "00000.png").write_bytes(b"half")
        else:
            path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(saving, "write", fill)
    with pytest.raises(RunFailed, match="the disk is full"):
        save(frames, target)
    left = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert left == ({} if suffix == "/" else {f"out{suffix}": "older"})


def test_an_interrupt_while_writing_leaves_nothing(tmp_path, frames):
    output = saving.plan(f"{tmp_path}/a.npy", 5)
    with pytest.raises(KeyboardInterrupt), saving.whole(output.path) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_ffmpeg_on_a_full_disk_is_told_apart(frames, tmp_path):
    link = tmp_path / "full.mp4"
    link.symlink_to("/dev/full")
    with pytest.raises((OSError, RunFailed)) as caught:
        saving.write(frames, link, "mp4", 16)
    assert getattr(caught.value, "errno", None) == errno.ENOSPC


def test_no_ffmpeg_is_said_early_with_the_other_formats(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "ffmpeg", lambda: None)
    with pytest.raises(BadInput, match=r"pip install imageio-ffmpeg, or use .gif, .webp, .npy"):
        saving.plan(f"{tmp_path}/out.mp4", 5)
    assert saving.plan(f"{tmp_path}/out.gif", 5).kind == "gif"


def test_rounding_to_bytes_is_to_the_nearest_level():
    levels = saving.to_uint8(np.array([-0.1, 0.0, 0.1 / 255, 0.6 / 255, 1.0, 1.2]))
    assert levels.tolist() == [0, 0, 0, 1, 255, 255]
